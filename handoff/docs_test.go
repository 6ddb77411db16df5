package handoff

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// docs/protocol.md and docs/errors.md say what the code does. What can be
// compared is compared here, and what the code has is found by reading it, so
// that something new that nobody wrote down fails too.

// document returns one file of docs/.
func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "docs", name))
	require.NoError(t, err)
	return string(b)
}

// section returns the part of a document below one heading, deeper headings
// included.
func section(t *testing.T, doc, heading string) string {
	t.Helper()
	level, _, _ := strings.Cut(heading, " ")
	var b strings.Builder
	in, code := false, false
	for line := range strings.Lines(doc) {
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		if !code && in && strings.HasPrefix(line, "#") && len(line)-len(strings.TrimLeft(line, "#")) <= len(level) {
			break
		}
		if in {
			b.WriteString(line)
		}
		in = in || !code && strings.TrimSpace(line) == heading
	}
	require.NotEmpty(t, b.String(), "no section %q", heading)
	return b.String()
}

// rows returns the tables of a text, by their first cell without backquotes;
// each row is its cells.
func rows(text string) map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		for name := range strings.SplitSeq(cells[0], ",") {
			all[strings.Trim(strings.TrimSpace(name), "`")] = cells
		}
	}
	return all
}

// sources parses the package in dir, tests aside.
func sources(t *testing.T, dir string) []*ast.File {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		files = append(files, f)
	}
	require.NotEmpty(t, files)
	return files
}

// inspect visits every node of a package.
func inspect(files []*ast.File, visit func(ast.Node)) {
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool { visit(n); return true })
	}
}

// literal returns a string literal's value, "" for anything else.
func literal(e ast.Expr) string {
	if l, ok := e.(*ast.BasicLit); ok && l.Kind == token.STRING {
		s, _ := strconv.Unquote(l.Value)
		return s
	}
	return ""
}

// constants returns the names and values of the package's constants, those
// without a value of their own aside.
func constants(files []*ast.File) map[string]ast.Expr {
	all := map[string]ast.Expr{}
	for _, f := range files {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i := range v.Values {
					all[v.Names[i].Name] = v.Values[i]
				}
			}
		}
	}
	return all
}

// mentions demands that a document has a text, without printing all of it.
func mentions(t *testing.T, doc, text, what string) {
	t.Helper()
	require.True(t, strings.Contains(doc, text), "%s: %q is not in the document", what, text)
}

// phrases returns the fixed parts of a format or message that are long enough
// to be searched for.
func phrases(message string) []string {
	var all []string
	for _, s := range regexp.MustCompile(`%[-+#0-9.]*[a-zA-Z]`).Split(message, -1) {
		if s = strings.Trim(s, " :;,.()\"…\n"); len(s) >= 8 {
			all = append(all, s)
		}
	}
	return all
}

func TestDocumentedFrames(t *testing.T) {
	doc := section(t, document(t, "protocol.md"), "## Frames")
	tables := rows(doc)
	for m := msgNone + 1; m < msgCount; m++ {
		if m == msgOK || m == msgSocketList { // answers, told of beside their questions
			require.Contains(t, doc, "`"+m.String()+"`")
			continue
		}
		require.Contains(t, tables, m.String(), "frame table")
	}
	fields := rows(section(t, doc, "### Fields"))
	for _, typ := range []reflect.Type{reflect.TypeFor[frame](), reflect.TypeFor[manifestItem]()} {
		for _, f := range reflect.VisibleFields(typ) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			require.Contains(t, fields, name, "field of %v", typ)
		}
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[program](), reflect.TypeFor[revision](), reflect.TypeFor[rejection](), reflect.TypeFor[versionRange](), reflect.TypeFor[deadlines](), reflect.TypeFor[fileID](), reflect.TypeFor[movedItem]()} {
		for _, f := range reflect.VisibleFields(typ) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			require.Regexp(t, "[`\"]"+name+"[`\"]", doc, "field of %v", typ)
		}
	}
	for _, k := range []kind{kindControl, kindStream, kindPacket, kindFile} {
		require.Contains(t, doc, "`"+string(k)+"`")
	}
}

// TestDocumentedExamples: every example in protocol.md is a frame that this code
// reads, and that it reads again from what it writes.
func TestDocumentedExamples(t *testing.T) {
	seen := map[msgType]bool{}
	for line := range strings.Lines(document(t, "protocol.md")) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "→ {")
		if !ok {
			text, ok = strings.CutPrefix(strings.TrimSpace(line), "← {")
		}
		if !ok {
			continue
		}
		f, err := decode([]byte("{" + text))
		if strings.Contains(text, `"nonsense"`) {
			require.ErrorIs(t, err, errUnknownType)
			continue
		}
		require.NoError(t, err, "%s", text)
		b, err := f.encode()
		require.NoError(t, err)
		require.JSONEq(t, "{"+text, string(b), "a field that the code does not have, or writes in another way")
		seen[f.Type] = true
	}
	for _, m := range []msgType{
		msgHello, msgWelcome, msgBusy, msgRefuse, msgSockets, msgGot, msgReady, msgServe, msgServing, msgRelease, msgReleased, msgDraining, msgBye,
		msgStatus, msgListSockets, msgSocketList, msgHandover, msgRollback, msgDrain, msgStop, msgWithdraw, msgOK, msgError,
	} {
		require.True(t, seen[m], "no example of %v", m)
	}
}

func TestDocumentedStates(t *testing.T) {
	doc := section(t, document(t, "protocol.md"), "## States")
	tables := rows(doc)
	for _, name := range stateNames {
		require.Contains(t, tables, name)
		if name != StateGone.String() {
			mentions(t, doc, "**"+name+"**", "what happens in it")
		}
	}
}

// documentedTransitions: the text has the transitions between states that the
// walk saw, no more and no fewer.
func documentedTransitions(t *testing.T, walked map[string]bool) {
	t.Helper()
	doc := section(t, document(t, "protocol.md"), "## States")
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z]+) +→ ([a-z, ]+)$`).FindAllStringSubmatch(doc, -1) {
		for to := range strings.SplitSeq(m[2], ",") {
			documented[m[1]+" → "+strings.TrimSpace(to)] = true
		}
	}
	require.Equal(t, slices.Sorted(maps.Keys(walked)), slices.Sorted(maps.Keys(documented)))
}

func TestDocumentedDeadlines(t *testing.T) {
	doc := section(t, document(t, "protocol.md"), "## Deadlines")
	cfg, err := Config{Socket: "s"}.withDefaults()
	require.NoError(t, err)
	tables := rows(doc)
	defaults := map[timerKind]time.Duration{
		timerStep: cfg.StepTimeout, timerReady: cfg.ReadyTimeout, timerServing: cfg.StepTimeout, timerProbation: cfg.Probation,
		timerReleased: cfg.StepTimeout, timerOffer: cfg.StepTimeout, timerOwed: cfg.ReadyTimeout,
		timerElderSilent: missed * cfg.Heartbeat, timerYoungerSilent: missed * cfg.Heartbeat,
	}
	for k := range timerCount {
		require.Contains(t, tables, k.String())
		want := "none"
		if d, ok := defaults[k]; ok {
			want = d.String()
		}
		require.Equal(t, want, tables[k.String()][1], "default of timer %v", k)
	}
	for what, want := range map[string]string{
		"drain":                       cfg.DrainTimeout.String() + ",",
		"sending one frame":           inWords(sendTimeout),
		"first frame of a connection": "StepTimeout",
		"an operator's next question": inWords(operatorIdle),
		"long poll":                   "60,000",
		"looking at the network of foreign sockets": inWords(networkEvery),
		"successor that was told `busy":             inWords(busyRetryMS * time.Millisecond),
		"full backlog of the control socket":        inWords(newBackoff().next) + ", doubling to " + inWords(newBackoff().most),
		"removing a socket's file":                  inWords(lockTimeout),
		"accepting what is queued":                  inWords(shutGrace),
		"a singleton that must end":                 inWords(singletonGrace),
	} {
		require.Contains(t, tables, what)
		require.Contains(t, tables[what][1], want, what)
	}
	require.Contains(t, doc, "more\nthan "+inWords(lateAfter)+" later than due")
	require.Contains(t, rows(section(t, document(t, "protocol.md"), "## Frames"))["draining"][2], inWords(reportEvery))
}

// inWords is a duration as the documents write it: 5 s, 100 ms.
func inWords(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%d s", d/time.Second)
	}
	return fmt.Sprintf("%d ms", d/time.Millisecond)
}

func TestDocumentedLimits(t *testing.T) {
	limits := map[string]int{
		"maxFrame": maxFrame, "maxBatch": maxBatch, "kernelMaxFDs": kernelMaxFDs, "maxSockets": maxSockets, "maxNameLen": maxNameLen, "maxKeyLen": maxKeyLen,
		"maxTextLen": maxTextLen, "maxFileNames": maxFileNames, "maxRejects": maxRejects, "maxRequests": maxRequests, "maxOlder": maxOlder,
		"maxRequestsSize": maxRequestsSize, "maxOlderSize": maxOlderSize, "maxHoldsSize": maxHoldsSize, "maxListed": maxListed, "maxWaiting": maxWaiting, "maxWaitingSize": maxWaitingSize, "maxExclusive": maxExclusive, "maxListeners": maxListeners, "maxIdleMillis": maxIdleMillis, "maxGeneration": maxGeneration,
		"socketsPage": socketsPage, "maxPollMillis": maxPollMillis, "maxConns": maxConns, "maxStaying": maxStaying, "maxSocketPath": maxSocketPath,
	}
	// Every constant of the package that is called a maximum is a limit, but
	// for the version.
	for name := range constants(sources(t, ".")) {
		if strings.HasPrefix(name, "max") && name != "maxVersion" {
			require.Contains(t, limits, name, "a limit that this test does not know")
		}
	}
	tables := rows(section(t, document(t, "protocol.md"), "## Limits"))
	for name, n := range limits {
		require.Contains(t, tables, name)
		require.Equal(t, strconv.Itoa(n), tables[name][1], name)
	}
	delete(tables, "constant")
	require.Len(t, tables, len(limits), "no limits but these")
}

func TestDocumentedVersion(t *testing.T) {
	require.Equal(t, []int{1, 1}, []int{minVersion, maxVersion})
	require.Contains(t, section(t, document(t, "protocol.md"), "## Versions"), fmt.Sprintf("This is version %d.", maxVersion))
	require.Contains(t, section(t, document(t, "protocol.md"), "## Status"), fmt.Sprintf("Schema %d.", StatusSchema))
}

func TestDocumentedReasonsAndCodes(t *testing.T) {
	files := sources(t, ".")
	protocol := rows(section(t, document(t, "protocol.md"), "## Reasons and codes"))
	explained := document(t, "errors.md")
	reasons := 0
	for name, value := range constants(files) {
		if !strings.HasPrefix(name, "why") || literal(value) == "" {
			continue
		}
		reasons++
		require.Contains(t, protocol, literal(value), "reason")
		mentions(t, explained, "`"+literal(value)+"`", "reason")
	}
	require.Greater(t, reasons, 10)
	for _, why := range []reason{whyStarting, whyHandoff, whyProbation, whyStopping, whyReleased, whyRevoking, whyMaxDraining, whySilent} {
		mentions(t, explained, "`"+busyText(why)+"`", "text of busy")
	}
	for _, why := range []reason{whyDisplaced, whyWithdrawn, whyTimeout, whyRollback, whyProtocol, whySilent} {
		mentions(t, explained, "`"+revokeText(why)+"`", "text of revoke")
	}

	codes := map[string]bool{}
	inspect(files, func(n ast.Node) {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			if k, ok := n.Key.(*ast.Ident); ok && k.Name == "Code" && literal(n.Value) != "" {
				codes[literal(n.Value)] = true
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && f.Name == "refusal" {
				codes[literal(n.Args[0])] = true
			}
		}
	})
	require.Contains(t, codes, CodeNoStandby)
	for code := range codes {
		require.Contains(t, protocol, code, "code")
		mentions(t, explained, "`"+code+"`", "code")
	}
}

func TestDocumentedStatus(t *testing.T) {
	doc := section(t, document(t, "protocol.md"), "## Status")
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Status](), reflect.TypeFor[GenerationStatus](), reflect.TypeFor[WaitingStatus](), reflect.TypeFor[RequestStatus](),
		reflect.TypeFor[HandoffStatus](), reflect.TypeFor[SocketInfo](),
	} {
		for _, f := range reflect.VisibleFields(typ) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			mentions(t, doc, "`"+name+"`", "field of the status")
		}
	}
	tables := rows(doc)
	for _, o := range []string{
		OutcomeStarting, OutcomeStandby, OutcomeCommitted, OutcomeReleased, OutcomeServing, OutcomeWithdrawn, OutcomeFailed, OutcomeRolledBack,
	} {
		require.Contains(t, tables, o)
	}
}

// TestExplainedErrors: every exported error of the package is in errors.md, with
// its text and its name.
func TestExplainedErrors(t *testing.T) {
	doc := document(t, "errors.md")
	n := 0
	inspect(sources(t, "."), func(node ast.Node) {
		v, ok := node.(*ast.ValueSpec)
		if !ok {
			return
		}
		for i, name := range v.Names {
			if !strings.HasPrefix(name.Name, "Err") || i >= len(v.Values) {
				continue
			}
			call, ok := v.Values[i].(*ast.CallExpr)
			require.True(t, ok, "%s", name.Name)
			text := literal(call.Args[0])
			require.NotEmpty(t, text, "%s", name.Name)
			mentions(t, doc, "`"+text+"` ("+name.Name+")", "sentinel")
			n++
		}
	})
	require.Greater(t, n, 10)
}

// TestExplainedLogLines: every warning and error of the log is in errors.md,
// under its level.
func TestExplainedLogLines(t *testing.T) {
	doc := section(t, document(t, "errors.md"), "## Warnings and errors in the log")
	n := 0
	for _, dir := range []string{".", "../cmd/server"} {
		inspect(sources(t, dir), func(node ast.Node) {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 || literal(call.Args[0]) == "" {
				return
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || f.Sel.Name != "Warn" && f.Sel.Name != "Error" {
				return
			}
			mentions(t, doc, fmt.Sprintf("| %s | `%s` |", strings.ToUpper(f.Sel.Name), literal(call.Args[0])), "line of the log")
			n++
		})
	}
	require.Greater(t, n, 10)
}

// TestExplainedTools: the exit codes of both programs and what they say
// themselves are in errors.md.
func TestExplainedTools(t *testing.T) {
	doc := document(t, "errors.md")
	for dir, heading := range map[string]string{
		"../cmd/server":     "## Exit codes of server",
		"../cmd/handoffctl": "## Exit codes of handoffctl",
	} {
		tables := rows(section(t, doc, heading))
		codes := 0
		for name, value := range constants(sources(t, dir)) {
			if n, ok := value.(*ast.BasicLit); ok && strings.HasPrefix(name, "exit") {
				require.Contains(t, tables, n.Value, "%s: %s", dir, name)
				codes++
			}
		}
		require.Greater(t, codes, 3)
		listed := 0
		for code := range tables {
			if _, err := strconv.Atoi(code); err == nil {
				listed++
			}
		}
		require.Equal(t, codes, listed, "%s: exit codes that it does not have", heading)
	}
	// What a failure is said to be; %v and the like cut it into phrases.
	n := 0
	inspect(sources(t, "../cmd/handoffctl"), func(node ast.Node) {
		kv, ok := node.(*ast.KeyValueExpr)
		if !ok {
			return
		}
		switch k, _ := kv.Key.(*ast.Ident); {
		case k == nil:
		case k.Name == "text":
			ast.Inspect(kv.Value, func(node ast.Node) bool {
				if e, ok := node.(ast.Expr); ok {
					for _, s := range phrases(literal(e)) {
						mentions(t, doc, s, "message of handoffctl")
						n++
					}
				}
				return true
			})
		case k.Name == "meaning":
			mentions(t, doc, literal(kv.Value), "exit code of handoffctl")
		}
	})
	require.Greater(t, n, 15)
}

// inside are errors that the package keeps to itself, or that can't come about.
var inside = []string{
	"peer left messages unread", "receive interrupted", "the peer has gone", "frame must have 1 to", "frame carries more than", "unknown network",
	// Of connections that move: in the log at level debug, and of the self-check, in its reason.
	"whoever serves takes no connections", "no HTTP server serves that listener here, or not as it is", "not a stream connection",
	"it lives in another network namespace than the listener", "its address here is", "which is not the listener's", "connections: too few or too many listeners, or no connection", "connections: an item is out of range",
	"it does not read as expected", "a part of a request is not noticed", "an idle connection is not recognised", "it answers the end of a connection with", "self-check: net/http of",
}

// TestExplainedMessages: what an error of the library or of the server says is
// in errors.md, phrase by phrase.
func TestExplainedMessages(t *testing.T) {
	doc := document(t, "errors.md")
	n := 0
	for _, dir := range []string{".", "../cmd/server"} {
		inspect(sources(t, dir), func(node ast.Node) {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); !ok || f.Sel.Name != "New" && f.Sel.Name != "Errorf" {
				return
			}
			for _, s := range phrases(literal(call.Args[0])) {
				if !slices.Contains(inside, s) {
					mentions(t, doc, s, "message of "+dir)
					n++
				}
			}
		})
	}
	require.Greater(t, n, 60)
}

// TestDocumentedRequirements: every feature that may be missing is in
// requirements.md, with its version and a test; and every test that it names is
// one.
func TestDocumentedRequirements(t *testing.T) {
	doc := document(t, "requirements.md")
	may := section(t, doc, "## Kernel: what may be missing")
	listed := 0
	for line := range strings.Lines(may) {
		if strings.Contains(line, "`Test") && strings.HasPrefix(line, "|") {
			listed++
		}
	}
	require.Equal(t, int(featureCount), listed)
	for _, k := range featureNames {
		row := regexp.MustCompile("(?m)^\\| `?" + regexp.QuoteMeta(k.name) + "[`a-zA-Z ]*\\|.*$").FindString(may)
		require.NotEmpty(t, row, k.name)
		require.Contains(t, row, k.since, k.name)
	}
	tests := map[string]bool{}
	names, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	for _, name := range names {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				tests[fn.Name.Name] = true
			}
		}
	}
	named := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(doc, -1)
	require.Greater(t, len(named), 25)
	for _, m := range named {
		require.True(t, tests[m[1]], "no test is called %s", m[1])
	}
}

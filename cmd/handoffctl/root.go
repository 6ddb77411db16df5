package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

const (
	// answerTimeout is how long a question may take that waits for nothing but
	// its answer.
	answerTimeout = 5 * time.Second
	// waitTimeout is the default of whatever waits for a handoff: longer than the
	// library's default for a successor to get ready (30 s) and its probation.
	waitTimeout = 60 * time.Second
)

// app is what all commands share.
type app struct {
	stdout, stderr io.Writer
	socket         string
	allowUIDs      []uint
	keyFile        string // as the flag or the environment names it
	json           bool
	timeout        time.Duration
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:     "handoffctl COMMAND",
		Version: programVersion(),
		Short:   "Ask and steer a service whose processes hand over to each other",
		Example: `  handoffctl --socket /run/app/control.sock status
  handoffctl --socket /run/app/control.sock upgrade -- ./app-v2
  HANDOFF_SOCKET=/run/app/control.sock handoffctl rollback`,
		Args: unknownCommand,
		RunE: func(*cobra.Command, []string) error {
			return &failure{code: exitUsage, text: "no command is given", hint: "handoffctl --help lists the commands"}
		},
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},

		SuggestionsMinimumDistance: 2,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.socket, "socket", "", "`PATH` of the service's control socket (default $HANDOFF_SOCKET)")
	f.UintSliceVar(&a.allowUIDs, "allow-uid", nil, "user `ID` whose process may answer (default this user and root)")
	f.Lookup("allow-uid").DefValue = "" // the text says it better than an empty list
	f.StringVar(&a.keyFile, "shared-key", "", "`FILE` with the secret that the service has too (default $HANDOFF_SHARED_KEY)")
	f.BoolVar(&a.json, "json", false, "print one JSON object")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &failure{code: exitUsage, text: err.Error(), hint: helpHint(cmd), err: err}
	})
	addTemplateFuncs()
	root.SetUsageTemplate(usageTemplate)
	root.SetHelpTemplate(usageTemplate)
	root.AddCommand(
		newStatus(a), newSockets(a), newUpgrade(a), newHandover(a), newRollback(a),
		newWait(a), newStop(a), newDrain(a), newCheck(a), newDirectory(a), newVersion(a), newCompletion(a),
	)
	root.SetHelpCommand(newHelp(root))
	return root
}

// addTemplateFuncs: cobra's are global, and several runs may share this process, as
// they do in tests.
var addTemplateFuncs = sync.OnceFunc(func() { cobra.AddTemplateFunc("exitCodes", helpExitCodes) })

const usageTemplate = `Usage:
  {{.UseLine}}

{{.Short}}.
{{with .Long}}
{{.}}
{{end}}{{if .HasAvailableSubCommands}}
Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{end}}
Examples:
{{.Example}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{with .InheritedFlags}}{{if .HasAvailableFlags}}
{{.FlagUsages | trimTrailingWhitespaces}}{{end}}{{end}}

Exit codes:
{{exitCodes .}}`

func helpExitCodes(cmd *cobra.Command) string {
	var b strings.Builder
	for _, e := range exitCodesOf(cmd) {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.meaning)
	}
	return b.String()
}

func helpHint(cmd *cobra.Command) string { return cmd.CommandPath() + " --help shows the usage" }

// noArgs is for commands that take flags only.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return &failure{code: exitUsage, text: fmt.Sprintf("unexpected argument %q", args[0]), hint: helpHint(cmd)}
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "handoffctl --help lists the commands"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "? " + hint
	}
	return &failure{code: exitUsage, text: fmt.Sprintf("unknown command %q", args[0]), hint: hint}
}

func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show how a command is used",
		Example: `  handoffctl help
  handoffctl help upgrade
  handoffctl upgrade --help`,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == root && len(rest) > 0 {
				return unknownCommand(root, args)
			}
			if len(rest) > 0 {
				return noArgs(cmd, rest)
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, c := range root.Commands() {
				if len(args) == 0 && c.IsAvailableCommand() {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// client is whoever answers at --socket or HANDOFF_SOCKET.
func (a *app) client(cmd *cobra.Command) (*handoff.Client, error) {
	path := a.socket
	if path == "" {
		path = os.Getenv("HANDOFF_SOCKET")
	}
	if path == "" {
		return nil, &failure{code: exitUsage, text: "no control socket is named", hint: "use --socket PATH, or set HANDOFF_SOCKET"}
	}
	c := &handoff.Client{Socket: path}
	for _, uid := range a.allowUIDs {
		if uint64(uid) >= 1<<32-1 { // the last one is the kernel's "no user"
			return nil, &failure{code: exitUsage, text: fmt.Sprintf("--allow-uid %d is not a user id", uid), hint: helpHint(cmd)}
		}
		c.AllowUIDs = append(c.AllowUIDs, uint32(uid))
	}
	if a.keyFile = cmp.Or(a.keyFile, os.Getenv(envKeyFile)); a.keyFile != "" {
		key, err := handoff.ReadKey(a.keyFile)
		if err != nil {
			return nil, &failure{code: exitUsage, text: fmt.Sprintf("the shared key can't be read: %v", err), hint: "--shared-key names the file that the service was started with", err: err}
		}
		c.Key = key
	}
	return c, nil
}

// envKeyFile names the file of the shared key, for server too.
const envKeyFile = "HANDOFF_SHARED_KEY"

// timeoutFlag adds --timeout to a command. The commands have defaults of their own, so they can't share a variable:
// it would have the default of the command that was made last.
func (a *app) timeoutFlag(cmd *cobra.Command, d time.Duration) {
	timeout := cmd.Flags().Duration("timeout", d, "`DURATION` to wait at most, as in 1m30s; 0 waits for ever")
	cmd.PreRun = func(*cobra.Command, []string) { a.timeout = *timeout }
}

// choice is a flag that takes one of a few words.
type choice struct {
	value string
	words []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return "string" }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.words, ", "))
	}
	c.value = s
	return nil
}

// choiceFlag adds c as a flag whose words a shell completes.
func choiceFlag(cmd *cobra.Command, c *choice, name, usage string) {
	cmd.Flags().Var(c, name, usage+": "+strings.Join(c.words, ", "))
	err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(c.words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // the flag was added one line above
	}
}

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// updatePages writes the man pages instead of comparing them: make man.
var updatePages = flag.Bool("update", false, "write docs/man")

const manDir = "../../docs/man"

// manDate is in every page. It is not the day of the build, so that a page
// changes with what it says only.
var manDate = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

// TestManPages: docs/man says what the commands' help says.
func TestManPages(t *testing.T) {
	pages := manPages(t)
	if *updatePages {
		require.NoError(t, os.MkdirAll(manDir, 0o755))
		old, err := filepath.Glob(filepath.Join(manDir, "*.1"))
		require.NoError(t, err)
		for _, path := range old {
			require.NoError(t, os.Remove(path))
		}
		for name, page := range pages {
			require.NoError(t, os.WriteFile(filepath.Join(manDir, name), page, 0o644))
		}
		return
	}
	files, err := os.ReadDir(manDir)
	require.NoError(t, err)
	require.Len(t, files, len(pages), "make man")
	for name, page := range pages {
		b, err := os.ReadFile(filepath.Join(manDir, name))
		require.NoError(t, err)
		require.Equal(t, string(page), string(b), "%s is not current: make man", name)
	}
}

// TestManPagesSay: what a reader of any page finds.
func TestManPagesSay(t *testing.T) {
	root, pages := newRoot(&app{}), manPages(t)
	for _, cmd := range append(root.Commands(), root) {
		page := string(pages[manName(cmd)])
		for _, section := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLE", "SEE ALSO"} {
			require.Contains(t, page, "\n.SH "+section+"\n", cmd.Name())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			require.Contains(t, page, `\fB\-\-`+f.Name+`\fP`, cmd.Name())
		})
		for line := range strings.Lines(cmd.Example) {
			require.Contains(t, strings.NewReplacer(`\-`, "-", `\(aq`, "'").Replace(page), strings.TrimSpace(line), cmd.Name())
		}
	}
	require.Contains(t, string(pages["handoffctl-upgrade.1"]), "126")
	require.NotContains(t, string(pages["handoffctl-status.1"]), "126")
}

func manName(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
}

// manPages makes the page of every command, by the name of its file.
func manPages(t *testing.T) map[string][]byte {
	t.Helper()
	root := newRoot(&app{})
	root.DisableAutoGenTag = true
	pages := map[string][]byte{}
	for _, cmd := range append(root.Commands(), root) {
		cmd.Long = manText(cmd)
		var b bytes.Buffer
		require.NoError(t, doc.GenMan(cmd, &doc.GenManHeader{Section: "1", Date: &manDate, Source: "handoff", Manual: "handoffctl"}, &b))
		// The generator lists options as paragraphs and knows no exit codes.
		before, rest, ok := strings.Cut(b.String(), "\n.SH OPTIONS")
		require.True(t, ok)
		_, after, ok := strings.Cut(rest, "\n.SH EXAMPLE\n")
		require.True(t, ok)
		page := before + manOptions(cmd) + manExitCodes(cmd) + "\n.SH EXAMPLE\n" + after
		// What is typed must not become a dash.
		pages[manName(cmd)] = []byte(strings.ReplaceAll(page, "--", `\-\-`))
	}
	return pages
}

// aligned is a line of a table in a help text, or the continuation of one.
var aligned = regexp.MustCompile(`^  +\S`)

// manText is a command's help as markdown: its tables stay as they are.
func manText(cmd *cobra.Command) string {
	if cmd.Long == "" {
		return cmd.Short + "."
	}
	var b strings.Builder
	for line := range strings.Lines(cmd.Long) {
		if aligned.MatchString(line) {
			line = "\t" + line
		}
		b.WriteString(line)
	}
	return strings.TrimSpace(b.String())
}

// manOptions is the list of flags, in roff.
func manOptions(cmd *cobra.Command) string {
	var b strings.Builder
	list := func(heading string, flags *pflag.FlagSet) {
		if !flags.HasAvailableFlags() {
			return
		}
		fmt.Fprintf(&b, "\n.SH %s\n", heading)
		flags.VisitAll(func(f *pflag.Flag) {
			value, usage := pflag.UnquoteUsage(f)
			names := `\fB--` + f.Name + `\fP`
			if f.Shorthand != "" {
				names = `\fB\-` + f.Shorthand + `\fP, ` + names
			}
			if value != "" {
				names += ` \fI` + value + `\fP`
			}
			if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "false" {
				usage += " (default " + f.DefValue + ")"
			}
			fmt.Fprintf(&b, ".TP\n%s\n%s\n", names, usage)
		})
	}
	list("OPTIONS", cmd.NonInheritedFlags())
	list("GLOBAL OPTIONS", cmd.InheritedFlags())
	return b.String()
}

// manExitCodes is the list of those that the command has, in roff.
func manExitCodes(cmd *cobra.Command) string {
	var b strings.Builder
	b.WriteString("\n.SH EXIT STATUS\n")
	for _, e := range exitCodesOf(cmd) {
		fmt.Fprintf(&b, ".TP\n\\fB%d\\fP\n%s\n", e.code, e.meaning)
	}
	return b.String()
}

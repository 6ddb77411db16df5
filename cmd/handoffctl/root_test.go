package main

import (
	"io"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

// Each command has the time-out that its help names, and not that of another command.
func TestTimeoutsByDefault(t *testing.T) {
	want := map[string]time.Duration{
		"status": answerTimeout, "sockets": answerTimeout, "rollback": answerTimeout,
		"upgrade": waitTimeout, "handover": waitTimeout, "wait": waitTimeout, "stop": waitTimeout, "drain": waitTimeout,
		"check": checkTimeout,
	}
	for _, cmd := range newRoot(&app{}).Commands() {
		flag := cmd.Flags().Lookup("timeout")
		if flag == nil {
			continue
		}
		t.Run(cmd.Name(), func(t *testing.T) {
			require.Equal(t, want[cmd.Name()].String(), flag.DefValue)
			a := &app{stdout: io.Discard, stderr: io.Discard}
			root := newRoot(a)
			same, _, err := root.Find([]string{cmd.Name()})
			require.NoError(t, err)
			same.Args = nil
			ran := false
			same.RunE = func(*cobra.Command, []string) error { ran = true; return nil }
			root.SetArgs([]string{cmd.Name()})
			require.NoError(t, root.Execute())
			require.True(t, ran)
			require.Equal(t, want[cmd.Name()], a.timeout)
		})
		delete(want, cmd.Name())
	}
	require.Empty(t, want, "commands without a --timeout")
}

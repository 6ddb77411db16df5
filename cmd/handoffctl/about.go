package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func programVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Example: `  handoffctl version
  handoffctl version --json
  handoffctl version --json | jq -r .version`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			version := programVersion()
			if a.json {
				return a.printJSON(struct {
					Schema  int    `json:"schema"`
					Version string `json:"version"`
					Go      string `json:"go"`
					OS      string `json:"os"`
					Arch    string `json:"arch"`
				}{schema, version, runtime.Version(), runtime.GOOS, runtime.GOARCH})
			}
			return a.println(fmt.Sprintf("handoffctl %s %s %s/%s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH))
		},
	}
}

func newCompletion(a *app) *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the completion script for a shell",
		Example: `  source <(handoffctl completion bash)
  handoffctl completion zsh > "${fpath[1]}/_handoffctl"
  handoffctl completion fish > ~/.config/fish/completions/handoffctl.fish`,
		ValidArgs: shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && cobra.OnlyValidArgs(cmd, args) == nil {
				return nil
			}
			return &failure{code: exitUsage, text: "one shell must be named: bash, zsh, fish or powershell", hint: helpHint(cmd)}
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			return map[string]func(io.Writer) error{
				"bash":       func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
				"zsh":        root.GenZshCompletion,
				"fish":       func(w io.Writer) error { return root.GenFishCompletion(w, true) },
				"powershell": root.GenPowerShellCompletionWithDesc,
			}[args[0]](a.stdout)
		},
	}
}

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
)

// configFile writes a configuration file.
func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestPrecedence(t *testing.T) {
	path := configFile(t, `
socket: /run/file
label: file
http: [":1", ":2"]
tcp-echo: [":7"]
probation: 1s
drain-timeout: 1m
access-log: true
log-level: warn
takeover: spare
move-idle: false
`)
	environ := []string{
		"HANDOFF_CONFIG=" + path, "HANDOFF_LABEL=env", "HANDOFF_HTTP=:3  web=:4", "HANDOFF_PROBATION=2s",
		"HANDOFF_ACCESS_LOG=false", "HANDOFF_TAKEOVER=standby", "HANDOFF_LOG_LEVEL=", "HANDOFF_MOVE_IDLE=true", "PATH=/bin", "HANDOFFS=1",
	}
	o, err := loadOptions([]string{"--http", ":5", "--probation=3s"}, environ)
	require.NoError(t, err)
	require.Equal(t, handoff.Config{
		Socket: "/run/file", Label: "env", Takeover: handoff.Standby,
		ReadyTimeout: 30 * time.Second, Probation: 3 * time.Second, DrainTimeout: time.Minute,
		StepTimeout: 5 * time.Second, Heartbeat: time.Second,
	}, o.config)
	require.Equal(t, []string{":5"}, o.schema.http, "the command line replaces the list")
	require.Equal(t, []string{":7"}, o.schema.tcpEcho)
	require.False(t, o.site.accessLog)
	require.Equal(t, "warn", o.schema.logLevel, "an empty variable is none")
	require.Empty(t, o.strange)

	o, err = loadOptions(nil, environ)
	require.NoError(t, err)
	require.Equal(t, []string{":3", "web=:4"}, o.schema.http)
	require.Equal(t, 2*time.Second, o.config.Probation)

	o, err = loadOptions([]string{"--config", path}, nil)
	require.NoError(t, err)
	require.Equal(t, []string{":1", ":2"}, o.schema.http)
	require.True(t, o.site.accessLog)
	require.Equal(t, handoff.Spare, o.config.Takeover)
	require.Equal(t, handoff.MoveIdleOff, o.config.MoveIdle)
}

// TestEveryFlagIsAVariableAndAKey: nothing can be said on the command line only,
// but for what belongs there.
func TestEveryFlagIsAVariableAndAKey(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, dir, 1)
	other := map[string]string{
		"takeover": "spare", "root": dir, "proxy": "http://127.0.0.1:1", "cert": cert, "key": key,
		"log-format": "json", "log-level": "debug", "access-log": "true", "log-file": filepath.Join(dir, "log"), "move-idle": "false", "allow-foreign-netns": "true", "allow-no-claim": "true",
		"label": "blue", "socket": "/run/s", "self-socket": "/run/self", "preview": ":99",
	}
	read := func(s *schema, args, environ []string) error {
		require.NoError(t, s.Parse(args))
		strange, err := s.read(environ)
		require.Empty(t, strange)
		return err
	}
	n := 0
	for i, f := range newSchema().configurable() {
		value := other[f.Name]
		switch {
		case value != "":
		case f.Value.Type() == "duration":
			value = "77s"
		case f.Value.Type() == "int":
			value = "7"
		default:
			value = ":" + string(rune('1'+i%9)) + "1"
		}
		text := f.Name + ": " + value + "\n"
		if repeatable(f) {
			text = f.Name + `: ["` + value + `"]` + "\n"
		} else if strings.HasPrefix(value, ":") {
			text = f.Name + `: "` + value + `"` + "\n"
		}
		for source, with := range map[string]func(s *schema) error{
			"flag":        func(s *schema) error { return read(s, []string{"--" + f.Name + "=" + value}, nil) },
			"environment": func(s *schema) error { return read(s, nil, []string{envName(f.Name) + "=" + value}) },
			"file":        func(s *schema) error { return read(s, []string{"--config", configFile(t, text)}, nil) },
		} {
			s := newSchema()
			require.NoError(t, with(s), "%s: %s", source, f.Name)
			require.Equal(t, []string{value}, trimmed(valueOf(s.Lookup(f.Name))), "%s: %s", source, f.Name)
			n++
		}
	}
	require.Greater(t, n, 50)
}

// trimmed writes durations as they were given.
func trimmed(values []string) []string {
	for i, v := range values {
		if d, err := time.ParseDuration(v); err == nil && d == 77*time.Second {
			values[i] = "77s"
		}
	}
	return values
}

func TestFilesThatAreRefused(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "label: a\nlabbel: b\n", `:2: unknown key "labbel" (did you mean "label"?)`},
		{"unknown key, nothing near", "completely-else: b\n", `:1: unknown key "completely-else"` + "\n"},
		{"underscore", "log_file: b\n", `:1: unknown key "log_file" (did you mean "log-file"?)`},
		{"duplicate", "label: a\nhttp: []\nlabel: a\n", `:3: the key "label" stands in line 1 already`},
		{"number for text", "label: 1.10\n", `:1: label: text is expected: write "1.10", in quotes`},
		{"boolean for text", "label: true\n", `:1: label: text is expected: write "true", in quotes`},
		{"text for a number", "max-draining: \"2\"\n", `:1: max-draining: a number is expected, not "2"`},
		{"text for a boolean that is true", "move-idle: \"no\"\n", `:1: move-idle: true or false is expected, not "no"`},
		{"text for a boolean", "access-log: \"yes\"\n", `:1: access-log: true or false is expected, not "yes"`},
		{"number for a duration", "probation: 5\n", ":1: probation: a duration such as 30s is expected, not 5"},
		{"bad duration", "probation: soon\n", ":1: probation: time: invalid duration"},
		{"bad takeover", "takeover: later\n", ":1: takeover: "},
		{"null", "label:\n", ":1: label: it has no value"},
		{"null too", "label: ~\n", ":1: label: it has no value"},
		{"text for a list", "http: :80\n", ":1: http: a list is expected"},
		{"list for text", "label: [a]\n", ":1: label: a single value is expected, not a list"},
		{"map for text", "label:\n  a: b\n", ":1: label: a single value is expected, not keys"},
		{"map in a list", "http:\n- \":80\"\n- a: b\n", ":1: http: line 3: a single value is expected"},
		{"number in a list", "http:\n- 80\n", ":1: http: line 2: text is expected"},
		{"alias", "label: &x a\nsocket: *x\n", ":2: socket: aliases are not followed"},
		{"merge", "<<: {label: a}\n", `:1: unknown key "<<"`},
		{"no map", "[label]\n", ":1: keys with values are expected"},
		{"no YAML", "label: 'a\n", ": this is neither YAML nor JSON"},
		{"no JSON", `{"label": "a"`, ": this is neither YAML nor JSON"},
		{"two documents", "label: a\n---\nlabel: b\n", ": there are 2 documents"},
		{"another file", "config: x\n", ":1: config belongs on the command line"},
		{"what is asked once", "check-config: true\n", ":1: check-config belongs on the command line"},
		{"hidden by a flag", "socket: 3\n", ":1: socket: text is expected"},
		{"value that does not fit", "http: [\"80\"]\n", `:1: http "80": an address is host:port`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := configFile(t, tc.text)
			_, err := loadOptions([]string{"--socket", "s", "--http", ":0", "--config", path}, nil)
			if tc.name == "value that does not fit" {
				_, err = loadOptions([]string{"--socket", "s", "--config", path}, nil)
			}
			require.Error(t, err)
			require.Contains(t, err.Error()+"\n", path+tc.want)
		})
	}
	_, err := loadOptions([]string{"--config", "/no/such"}, nil)
	require.ErrorContains(t, err, "/no/such: the configuration can't be read: no such file")
}

func TestFilesThatSayNothing(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "{}", "null\n"} {
		_, err := loadOptions([]string{"--socket", "s", "--http", ":0", "--config", configFile(t, text)}, nil)
		require.NoError(t, err, "%q", text)
	}
}

func TestJSONIsRead(t *testing.T) {
	o, err := loadOptions([]string{"--config", configFile(t, `{"socket": "/run/s", "http": ["web=:80"], "probation": "0s", "access-log": true}`)}, nil)
	require.NoError(t, err)
	require.Equal(t, handoff.Socket{Name: "web", Network: "tcp", Address: ":80"}, o.http[0])
	require.True(t, o.site.accessLog)
	require.Negative(t, o.config.Probation)
}

// TestStrangeVariables: in Kubernetes a service that is named handoff must not
// keep the server from starting.
func TestStrangeVariables(t *testing.T) {
	o, err := loadOptions([]string{"--socket", "s", "--http", ":0"}, []string{
		"HANDOFF_PORT=tcp://10.0.0.1:80", "HANDOFF_SERVICE_HOST=10.0.0.1", "HANDOFF_REQUEST=r", "HANDOFF_TEST_ROOT=1",
		"HANDOFF_CHECK_CONFIG=1", "HANDOFF_EMPTY=",
	})
	require.NoError(t, err)
	require.Equal(t, []string{"HANDOFF_CHECK_CONFIG", "HANDOFF_PORT", "HANDOFF_SERVICE_HOST"}, o.strange)

	_, err = loadOptions([]string{"--socket", "s", "--http", ":0"}, []string{"HANDOFF_PROBATION=soon"})
	require.ErrorContains(t, err, "HANDOFF_PROBATION: time: invalid duration")
	_, err = loadOptions([]string{"--socket", "s"}, []string{"HANDOFF_HTTP=80 :81"})
	require.ErrorContains(t, err, `HANDOFF_HTTP "80": an address is`)
}

// TestCheckConfig: what is printed says the same when it is read.
func TestCheckConfig(t *testing.T) {
	path := configFile(t, "http: [\":1\", \"web=unix:/run/a b\"]\nlabel: 'yes'\ndrain-timeout: 0s\nmove-idle: false\n")
	args := []string{"--socket", "/run/s", "--config", path, "--takeover", "standby", "--access-log"}
	t.Setenv("HANDOFF_PROBATION", "90s")
	t.Setenv("HANDOFF_PORT", "1")
	var out, errs bytes.Buffer
	require.Equal(t, exitDone, run(append(args, "--check-config"), &out, &errs), "%s", errs.String())
	require.Equal(t, "server: warning: the environment variable HANDOFF_PORT means nothing to this server\n", errs.String())
	for _, line := range []string{
		"socket: /run/s # --socket\n", "label: yes # " + path + ":2\n", "http: # " + path + ":1\n", "probation: 1m30s # HANDOFF_PROBATION\n",
		"access-log: true # --access-log\n", "ready-timeout: 30s # default\n", "drain-timeout: 0s # " + path + ":3\n", "takeover: standby # --takeover\n",
		"move-idle: false # " + path + ":4\n",
	} {
		require.Contains(t, out.String(), line)
	}
	before, err := loadOptions(args, []string{"HANDOFF_PROBATION=90s"})
	require.NoError(t, err)
	after, err := loadOptions([]string{"--config", configFile(t, out.String())}, nil)
	require.NoError(t, err)
	require.Empty(t, changed(before, after))
	require.Equal(t, before.config, after.config)
	require.Equal(t, before.http, after.http)
}

// TestCheckConfigSaysEverything: all that is wrong, not only the first of it.
func TestCheckConfigSaysEverything(t *testing.T) {
	path := configFile(t, "labl: a\nprobation: 5\nlog-level: loud\n")
	var out, errs bytes.Buffer
	code := run([]string{"--check-config", "--config", path, "--http", "80", "--https", ":1", "--root", "/no/such", "--ready-timeout", "0", "--log-format", "xml"}, &out, &errs)
	require.Equal(t, exitUsage, code)
	require.Empty(t, out.String())
	for _, want := range []string{"labl", "probation: a duration", "loud"} {
		require.Contains(t, errs.String(), want)
	}
	path = configFile(t, "log-level: loud\n")
	errs.Reset()
	code = run([]string{"--check-config", "--config", path, "--http", "80", "--https", ":1", "--root", "/no/such", "--ready-timeout", "0", "--log-format", "xml"}, &out, &errs)
	require.Equal(t, exitUsage, code)
	for _, want := range []string{
		"--socket is missing", `--http "80"`, "--cert and --key", `--root "/no/such": no such file`, "--ready-timeout 0s is too short",
		`--log-format "xml"`, `log-level "loud"`,
	} {
		require.Contains(t, errs.String(), want)
	}
	require.Equal(t, 7, strings.Count(errs.String(), "server: error: "))
	require.Equal(t, 1, strings.Count(errs.String(), "server: hint: "))
}

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fdhandoff/handoff/handoff"
)

const envPrefix = "HANDOFF_"

// notOurs are variables with the prefix that mean something to somebody else.
func notOurs(name string) bool {
	return name == handoff.EnvRequest || strings.HasPrefix(name, envPrefix+"TEST_")
}

// envName is the environment variable of a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// origin is where a value came from: a flag, if both fields are empty.
type origin struct {
	env  string // the variable
	file string // path:line
}

func (o origin) of(flag string) string {
	switch {
	case o.env != "":
		return o.env
	case o.file != "":
		return o.file + ": " + flag
	}
	return "--" + flag
}

// where names a flag by the place that its value came from.
func (s *schema) where(flag string) string { return s.origins[flag].of(flag) }

// read fills in the values, after the command line was parsed: flags beat the
// environment, which beats the file. It returns everything that is wrong, and
// the variables that look like the server's and are not.
func (s *schema) read(environ []string) (strange []string, err error) {
	var errs []error
	if s.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", s.Arg(0)))
	}
	// A lower source is read whole, so that what is wrong in it shows although
	// a higher one hides it.
	given := map[string][]string{}
	s.Visit(func(f *pflag.Flag) { given[f.Name] = valueOf(f) })
	env, strange := s.environment(environ)
	if s.config == "" {
		s.config = env[envName("config")]
	}
	if s.config != "" {
		errs = append(errs, s.readFile(s.config)...)
	}
	for _, f := range s.configurable() {
		if text, ok := env[envName(f.Name)]; ok {
			values := []string{text}
			if repeatable(f) {
				values = strings.Fields(text)
			}
			from := origin{env: envName(f.Name)}
			if err := s.set(f, from, values); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", from.env, err))
			}
		}
	}
	for name, values := range given {
		if err := s.set(s.Lookup(name), origin{}, values); err != nil {
			errs = append(errs, err)
		}
	}
	return strange, errors.Join(errs...)
}

// environment returns the variables that are not empty and belong to a flag, and
// the names of those that only look so: in Kubernetes a service named handoff
// makes HANDOFF_PORT and others.
func (s *schema) environment(environ []string) (env map[string]string, strange []string) {
	known := []string{envName("config")}
	for _, f := range s.configurable() {
		known = append(known, envName(f.Name))
	}
	env = map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case !strings.HasPrefix(name, envPrefix), value == "", notOurs(name):
		case slices.Contains(known, name):
			env[name] = value
		default:
			strange = append(strange, name)
		}
	}
	slices.Sort(strange)
	return env, strange
}

// set gives a flag its value, or the values of a repeatable one.
func (s *schema) set(f *pflag.Flag, from origin, values []string) error {
	s.origins[f.Name] = from
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.Replace(values)
	}
	return f.Value.Set(values[0])
}

func repeatable(f *pflag.Flag) bool {
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

// valueOf is what set takes.
func valueOf(f *pflag.Flag) []string {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.GetSlice()
	}
	return []string{f.Value.String()}
}

// forgetEnvironment takes away what the library would read for itself: the
// configuration has it, or a flag that beats it.
func forgetEnvironment() {
	os.Unsetenv(handoff.EnvSocket)
	os.Unsetenv(handoff.EnvTakeover)
}

// take gives a flag the value that it has in another schema.
func (s *schema) take(name string, from *schema) {
	// What the other could be set to this can be set to.
	s.set(s.Lookup(name), from.origins[name], valueOf(from.Lookup(name)))
}

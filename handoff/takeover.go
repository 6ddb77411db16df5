package handoff

import (
	"fmt"
	"os"
)

// Takeover says when a process takes over from the incumbent it finds.
type Takeover uint8

const (
	// Auto takes over as soon as Ready is called.
	Auto Takeover = iota
	// Standby becomes ready and waits for an operator's handover, or for the
	// incumbent's stop or death.
	Standby
	// Spare waits for the incumbent's stop or death only. It gives way to any other
	// successor and registers with the next incumbent by itself, so that a hot
	// spare never blocks a deploy.
	Spare
	// Never refuses to start where an incumbent lives.
	Never
)

var takeoverNames = [...]string{"auto", "standby", "spare", "never"}

func (t Takeover) String() string {
	if int(t) < len(takeoverNames) {
		return takeoverNames[t]
	}
	return fmt.Sprintf("Takeover(%d)", uint8(t))
}

// ParseTakeover is the inverse of String.
func ParseTakeover(s string) (Takeover, error) {
	for i, name := range takeoverNames {
		if s == name {
			return Takeover(i), nil
		}
	}
	return 0, fmt.Errorf("handoff: takeover %q is none of auto, standby, spare, never", s)
}

// MarshalText and UnmarshalText let a Takeover be a flag, a configuration value
// and a JSON string.
func (t Takeover) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is MarshalText's inverse.
func (t *Takeover) UnmarshalText(b []byte) (err error) {
	*t, err = ParseTakeover(string(b))
	return err
}

// takeoverFromEnv is t, or what EnvTakeover says where t is Auto.
func takeoverFromEnv(t Takeover) (Takeover, error) {
	name := os.Getenv(EnvTakeover)
	if t != Auto || name == "" {
		return t, nil
	}
	t, err := ParseTakeover(name)
	if err != nil {
		return t, fmt.Errorf("handoff: %s is %q, which is none of auto, standby, spare, never", EnvTakeover, name)
	}
	return t, nil
}

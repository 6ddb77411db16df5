package main

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/fdhandoff/handoff/handoff"
)

// parseListen reads [NAME=]host:port or [NAME=]unix:/path. The name is the
// address as written unless one is given. packet asks for a packet socket's
// networks.
func parseListen(spec string, packet bool) (handoff.Socket, error) {
	s := handoff.Socket{Address: spec}
	if name, addr, ok := strings.Cut(spec, "="); ok && !strings.ContainsAny(name, ":/[") {
		if name == "" {
			return s, errors.New("the name before = is empty")
		}
		s.Name, s.Address = name, addr
	}
	if s.Name == "" {
		s.Name = s.Address
	}
	var err error
	s.Network, s.Address, err = parseAddress(s.Address, packet)
	return s, err
}

// parseAddress reads host:port or unix:/path. The host is not looked up.
func parseAddress(text string, packet bool) (network, address string, err error) {
	inet, unix := "tcp", "unix"
	if packet {
		inet, unix = "udp", "unixgram"
	}
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		if path == "" {
			return unix, path, errors.New("unix: needs a path")
		}
		return unix, path, nil
	}
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return inet, text, errors.New("an address is host:port, :port or unix:/path")
	}
	if _, err := net.LookupPort(inet, port); err != nil {
		return inet, text, fmt.Errorf("port %q is neither a number up to 65535 nor a known service", port)
	}
	return inet, text, nil
}

// addresses reads the addresses of several flags and sees to it that no two are
// the same.
type addresses struct {
	names, bound map[string]bool
}

func newAddresses() *addresses { return &addresses{map[string]bool{}, map[string]bool{}} }

func (a *addresses) parse(spec string, packet bool) (handoff.Socket, error) {
	s, err := parseListen(spec, packet)
	if err != nil {
		return s, err
	}
	name, address := s.Network+" "+s.Name, s.Network+" "+s.Address
	switch {
	case a.names[name]:
		return s, fmt.Errorf("the name %s is used twice; use another address, or give one of them another NAME=", s.Name)
	case a.taken(s.Network, s.Address):
		return s, fmt.Errorf("the address %s is used twice", s.Address)
	}
	a.names[name], a.bound[address] = true, true
	return s, nil
}

// taken tells whether the address has a socket already. Port 0 is another one each time.
func (a *addresses) taken(network, address string) bool {
	_, port, _ := net.SplitHostPort(address)
	return a.bound[network+" "+address] && port != "0"
}

package handoff

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMapsAll(t *testing.T) {
	tests := []struct {
		name, text string
		all        bool
	}{
		{"the first namespace", "         0          0 4294967295\n", true},
		{"all, in two parts", "0 1 4294967294\n4294967294 0 1\n", true},
		{"a container's", "0 100000 65536\n", false},
		{"a container's that has a 65534 of its own", "0 100000 65534\n65534 165534 1\n", false},
		{"oneself only", "0 1000 1\n", false},
		{"all but one", "0 0 4294967294\n", false},
		{"more than there are", "0 0 4294967295\n0 0 4294967295\n", false},
		{"not written yet", "", false},
		{"half a line", "0 0", false},
		{"no number", "0 0 all\n", false},
		{"a number below 0", "0 0 -1\n", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { require.Equal(t, test.all, mapsAll(test.text)) })
	}
}

func FuzzMapsAll(f *testing.F) {
	f.Add("0 0 4294967295\n")
	f.Add("0 0 1\n1 1 4294967294\n")
	f.Fuzz(func(t *testing.T, text string) { mapsAll(text) })
}

func TestReadIDSpace(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	all, part := file("all", "0 0 4294967295\n"), file("part", "0 1000 1\n")
	seven, junk := file("seven", "7\n"), file("junk", "none\n")
	missing := filepath.Join(dir, "missing")
	tests := []struct {
		name, ids, overflow string
		want                idSpace
	}{
		{"all", all, seven, idSpace{overflow: 7, full: true}},
		{"a part", part, seven, idSpace{overflow: 7}},
		{"the number is not told", part, missing, idSpace{overflow: 65534}},
		{"the number is none", part, junk, idSpace{overflow: 65534}},
		{"/proc is not mounted", missing, missing, idSpace{overflow: 65534}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { require.Equal(t, test.want, readIDSpace(test.ids, test.overflow)) })
	}
}

// Whoever is shown under the number for those without one may be anybody.
func TestAllowWhereIDsAreMissing(t *testing.T) {
	part, full := idSpace{overflow: 65534}, idSpace{overflow: 65534, full: true}
	tests := []struct {
		name          string
		self          uint32
		allow         allow
		peer          peer
		users, groups idSpace
		ok            bool
	}{
		{"nobody among all", 65534, allow{}, peer{PID: 7, UID: 65534}, full, full, true},
		{"nobody among all, listed", 0, allow{UIDs: []uint32{65534}}, peer{PID: 7, UID: 65534}, full, full, true},
		{"oneself as all the others", 65534, allow{}, peer{UID: 65534, GID: 65534}, part, part, false},
		{"listed as all the others", 0, allow{UIDs: []uint32{65534}}, peer{UID: 65534, GID: 65534}, part, part, false},
		{"its group is listed as all the others", 0, allow{GIDs: []uint32{65534}}, peer{UID: 65534, GID: 65534}, part, part, false},
		{"its group has a number", 0, allow{GIDs: []uint32{5}}, peer{UID: 65534, GID: 5}, part, part, true},
		{"its group is nobody's among all groups", 0, allow{GIDs: []uint32{65534}}, peer{UID: 65534, GID: 65534}, part, full, true},
		{"another one with a number", 1000, allow{}, peer{PID: 7, UID: 1000, GID: 65534}, part, part, true},
		{"root", 65534, allow{}, peer{PID: 7}, part, part, true},
		{"root is what all the others are shown as", 1000, allow{}, peer{}, idSpace{}, part, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.allow.checkAs(test.self, test.peer, test.users, test.groups)
			if test.ok {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrPermission)
			require.ErrorContains(t, err, "(outside of this process's pid namespace)")
			require.ErrorContains(t, err, "shared key")
			require.NotContains(t, err.Error(), "pid 0")
		})
	}
}

func TestCheckNames(t *testing.T) {
	ids := []uint32{1, 65534}
	require.NoError(t, idSpace{overflow: 65534, full: true}.checkNames("AllowUIDs", ids))
	require.NoError(t, idSpace{overflow: 7}.checkNames("AllowUIDs", ids))
	require.EqualError(t, idSpace{overflow: 65534}.checkNames("AllowUIDs", ids),
		"AllowUIDs: 65534 stands for everybody without a number in this user namespace, so it can't be allowed (use a shared key)")
}

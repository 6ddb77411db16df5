package handoff

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var (
	testKey  = bytes.Repeat([]byte("k"), minKeyLen)
	otherKey = bytes.Repeat([]byte("o"), minKeyLen)
)

// Whatever differs, the signature does.
func TestSignatureCoversAll(t *testing.T) {
	a, b := bytes.Repeat([]byte{1}, nonceLen), bytes.Repeat([]byte{2}, nonceLen)
	id := fileID{Dev: 1, Ino: 2}
	sum := sharedKey(testKey).mac(proverDials, a, b, id)
	require.Len(t, sum, macLen)
	require.True(t, sharedKey(testKey).signed(sum, proverDials, a, b, id))
	tests := []struct {
		name string
		with sharedKey
		side prover
		a, b []byte
		id   fileID
	}{
		{"key", otherKey, proverDials, a, b, id},
		{"side", testKey, proverAnswers, a, b, id},
		{"who dials", testKey, proverDials, b, b, id},
		{"who answers", testKey, proverDials, a, a, id},
		{"nonces exchanged", testKey, proverDials, b, a, id},
		{"a byte of one nonce in the other", testKey, proverDials, a[1:], append(a[:1:1], b...), id},
		{"device", testKey, proverDials, a, b, fileID{Dev: 3, Ino: 2}},
		{"inode", testKey, proverDials, a, b, fileID{Dev: 1, Ino: 3}},
		{"device and inode exchanged", testKey, proverDials, a, b, fileID{Dev: 2, Ino: 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			require.False(t, test.with.signed(sum, test.side, test.a, test.b, test.id))
		})
	}
	for _, cut := range [][]byte{nil, sum[:macLen-1], append(bytes.Clone(sum), 0)} {
		require.False(t, sharedKey(testKey).signed(cut, proverDials, a, b, id))
	}
}

func TestReadKey(t *testing.T) {
	dir := t.TempDir()
	key := strings.Repeat("k", minKeyLen)
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	require.NoError(t, os.Symlink(file("secret", key, 0o444), link))
	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	tests := []struct {
		name, path, want, wrong string
	}{
		{"as it is", file("plain", key, 0o600), key, ""},
		{"a line", file("line", key+"\n", 0o600), key, ""},
		{"a line from elsewhere", file("crlf", key+"\r\n", 0o600), key, ""},
		{"only one line's end is left out", file("two", key+"\n\n", 0o600), key + "\n", ""},
		{"bytes", file("bytes", key+"\r\x00 ", 0o600), key + "\r\x00 ", ""},
		{"an engine's secret, by a link", link, key, ""},
		{"the longest", file("longest", strings.Repeat("x", maxKeyLen)+"\r\n", 0o600), strings.Repeat("x", maxKeyLen), ""},
		{"too long", file("long", strings.Repeat("x", maxKeyLen+1), 0o600), "", "16 to 4096 bytes, not 4097"},
		{"empty", file("empty", "", 0o600), "", "16 to 4096 bytes, not 0 (make one of 32 random bytes)"},
		{"an empty line", file("blank", "\n", 0o600), "", "not 0"},
		{"short", file("short", key[1:]+"\n", 0o600), "", "16 to 4096 bytes, not 15"},
		{"everybody may write to it", file("open", key, 0o606), "", "mode 0606"},
		{"missing", filepath.Join(dir, "missing"), "", "no such file"},
		{"a directory", dir, "", "is a regular one"},
		{"a pipe, which nobody writes to", pipe, "", "is a regular one"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ReadKey(test.path)
			if test.wrong == "" {
				require.NoError(t, err)
				require.Equal(t, test.want, string(got))
				return
			}
			require.ErrorContains(t, err, test.wrong)
			require.ErrorContains(t, err, test.path)
			require.Nil(t, got)
		})
	}
}

func TestKeyOfAConfig(t *testing.T) {
	cfg := Config{Socket: "s"}
	require.NoError(t, cfg.Validate())
	for _, n := range []int{0, minKeyLen - 1, maxKeyLen + 1} {
		cfg.Key = make([]byte, n)
		require.ErrorContains(t, cfg.Validate(), fmt.Sprintf("handoff: Config.Key: a shared key has 16 to 4096 bytes, not %d", n))
		_, err := (&Client{Socket: "s", Key: cfg.Key}).Status(t.Context())
		require.ErrorContains(t, err, fmt.Sprintf("not %d", n))
	}
	key := bytes.Clone(testKey)
	cfg.Key = key
	cfg, err := cfg.withDefaults()
	require.NoError(t, err)
	clear(key)
	require.Equal(t, testKey, cfg.Key, "it is Start's own")
}

func TestLineLimit(t *testing.T) {
	var l lineLimit
	now := time.Unix(1000, 0)
	for range strangerLines {
		left, ok := l.next(now)
		require.True(t, ok)
		require.Zero(t, left)
	}
	for range 7 {
		_, ok := l.next(now.Add(strangerWindow - 1))
		require.False(t, ok)
	}
	left, ok := l.next(now.Add(strangerWindow))
	require.True(t, ok)
	require.Equal(t, 7, left, "how many there were is said with the next line")
	left, ok = l.next(now.Add(strangerWindow))
	require.True(t, ok)
	require.Zero(t, left)
}

// Who is trusted by its ids needs no key, whatever key the other has.
func TestKeysAmongPeersThatAreTrusted(t *testing.T) {
	tests := []struct {
		name          string
		one, two, ask []byte
		warns         bool
	}{
		{name: "equal", one: testKey, two: testKey, ask: testKey},
		{name: "the incumbent has none", two: testKey, ask: testKey},
		{name: "the successor has none", one: testKey},
		{name: "different", one: testKey, two: otherKey, ask: bytes.Repeat([]byte("x"), minKeyLen), warns: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newChain(t)
			var log book
			c.key = test.one
			one, _ := c.serve("one", probation, log.use)
			c.key = test.two
			two, ln := c.serve("two", probation)
			require.Equal(t, "2", asked(t, ln.Addr()))
			c.key = test.ask
			_, err := c.client().Rollback(c.ctx)
			require.NoError(t, err)
			_, err = two.Wait(c.ctx)
			require.ErrorIs(t, err, ErrRevoked)
			one.Stop()
			require.Equal(t, "stopped", c.wait(one).Reason)
			require.Equal(t, test.warns, strings.Contains(log.String(), "a peer has another shared key; it is trusted by its user all the same"), "%s", log.String())
		})
	}
}

// With a key everybody may connect, whatever the umask; without, as before, nobody
// else. The lock follows, also one that was made before there was a key.
func TestModeWithAKey(t *testing.T) {
	if inChild(t, func(string) { // the umask is the whole program's
		syscall.Umask(0o077)
		dir := os.Getenv(pathVariable)
		modes := func(name string) []os.FileMode {
			var all []os.FileMode
			for _, suffix := range []string{"", ".lock"} {
				info, err := os.Lstat(filepath.Join(dir, name+suffix))
				require.NoError(t, err)
				all = append(all, info.Mode().Perm())
			}
			return all
		}
		for _, step := range []struct {
			name string
			key  sharedKey
			want []os.FileMode
		}{
			{"s", nil, []os.FileMode{0o600, 0o600}},
			{"s", testKey, []os.FileMode{0o666, 0o644}},
			{"t", testKey, []os.FileMode{0o666, 0o644}},
		} {
			ln, id, _, err := meet(t.Context(), filepath.Join(dir, step.name), allow{Key: step.key})
			require.NoError(t, err)
			require.Equal(t, step.want, modes(step.name))
			require.NoError(t, removeSocketFile(filepath.Join(dir, step.name), id))
			require.NoError(t, ln.Close())
		}
		self, _, err := listenAlone(t.Context(), filepath.Join(dir, "self"), allow{Key: testKey})
		require.NoError(t, err)
		require.Equal(t, []os.FileMode{0o666, 0o644}, modes("self"))
		require.NoError(t, self.Close())
		fmt.Println("done it")
	}) {
		return
	}
	c := startChild(t, childCommand(t, "child", pathVariable+"="+socketDir(t)))
	c.expect("done")
	c.end()
}

// What has come to the path meanwhile keeps its mode.
func TestWidenTouchesNothingElse(t *testing.T) {
	dir := t.TempDir()
	path, secret := filepath.Join(dir, "s"), filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, nil, 0o600))
	require.NoError(t, os.Symlink(secret, path))
	id, _, err := identify(secret)
	require.NoError(t, err)
	require.ErrorIs(t, widen(path, id, 0o666), ErrNotSocket)
	info, err := os.Stat(secret)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

// A chain's socket keeps the mode that it was bound with: a key that a later
// generation has lets nobody in who could not connect before.
func TestModeStaysWithTheChain(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one")
	c.key = testKey
	two, _ := c.serve("two")
	c.wait(one)
	info, err := os.Stat(c.socket)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	two.Stop()
	c.wait(two)
}

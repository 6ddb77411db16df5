package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// newPair makes a certificate for localhost, with its key.
func newPair(t *testing.T, serial int64, notAfter time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// writePair writes a pair that is valid for a day to tls.crt and tls.key.
func writePair(t *testing.T, dir string, serial int64) (certFile, keyFile string) {
	t.Helper()
	cert, key := newPair(t, serial, time.Now().Add(24*time.Hour))
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write(t, certFile, cert)
	write(t, keyFile, key)
	return certFile, keyFile
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, text, 0o600))
}

func serial(c *certificate) int64 { return c.now.Load().Leaf.SerialNumber.Int64() }

func TestBadCertificatesAreRefused(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := writePair(t, dir, 1)
	otherCert, otherKey := newPair(t, 2, time.Now().Add(time.Hour))
	oldCert, oldKey := newPair(t, 3, time.Now().Add(-time.Hour))
	var log bytes.Buffer
	c, err := newCertificate(pairFiles{certFile, keyFile}, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	require.Contains(t, log.String(), "level=INFO msg=certificate subject=\"CN=localhost\"")
	require.Contains(t, log.String(), "not_after=")
	good, goodKey := c.now.Load().Certificate.Certificate[0], readFile(t, keyFile)
	goodPEM := readFile(t, certFile)
	for _, tc := range []struct {
		name      string
		cert, key []byte
		want      string
	}{
		{"empty", nil, nil, "failed to find any PEM data"},
		{"not matched", otherCert, goodKey, "does not match"},
		{"half", otherCert[:len(otherCert)/2], otherKey, "half written"},
		{"half a chain", append(bytes.Clone(otherCert), goodPEM[:len(goodPEM)-5]...), otherKey, "half written"},
		{"half a key", otherCert, otherKey[:len(otherKey)/2], "half written"},
		{"swapped", otherKey, otherCert, "PEM"},
		{"expired", oldCert, oldKey, "the certificate has expired, on "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			write(t, certFile, tc.cert)
			write(t, keyFile, tc.key)
			log.Reset()
			c.reload()
			require.Equal(t, good, c.now.Load().Certificate.Certificate[0])
			require.Contains(t, log.String(), `level=ERROR msg="the new certificate is refused, the one before it stays"`)
			require.Contains(t, log.String(), tc.want)
		})
	}
	require.NoError(t, os.Remove(keyFile))
	c.reload()
	require.Contains(t, log.String(), "no such file")
	write(t, certFile, otherCert)
	write(t, keyFile, otherKey)
	c.reload()
	require.EqualValues(t, 2, serial(c))
	log.Reset()
	c.reload()
	require.Empty(t, log.String(), "the same again")
	write(t, certFile, nil)
	require.Error(t, c.load(pairFiles{certFile, keyFile}))
	require.EqualValues(t, 2, serial(c))
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// TestAnExpiredCertificateIsBetterThanNone at the beginning, with a warning.
func TestAnExpiredCertificateIsBetterThanNone(t *testing.T) {
	dir := t.TempDir()
	cert, key := newPair(t, 3, time.Now().Add(-time.Hour))
	write(t, filepath.Join(dir, "c"), cert)
	write(t, filepath.Join(dir, "k"), key)
	var log bytes.Buffer
	c, err := newCertificate(pairFiles{filepath.Join(dir, "c"), filepath.Join(dir, "k")}, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	require.EqualValues(t, 3, serial(c))
	require.Contains(t, log.String(), `level=WARN msg="the certificate has expired"`)
}

// watched is a certificate whose files are watched, and a channel that receives
// after each time that they were read.
func watched(t *testing.T, certFile, keyFile string) (*certificate, <-chan struct{}) {
	t.Helper()
	leak.Check(t)
	c, err := newCertificate(pairFiles{certFile, keyFile}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	read := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	w, err := watchFilesWithin(time.Millisecond, 10*time.Millisecond, c.paths, c.changed, func() {
		c.reload()
		select {
		case read <- struct{}{}:
		case <-ctx.Done():
		}
	}, func(err error) { t.Errorf("watch: %v", err) })
	require.NoError(t, err)
	t.Cleanup(func() { cancel(); w.close() })
	return c, read
}

// becomes waits until the certificate has this serial number.
func becomes(t *testing.T, c *certificate, read <-chan struct{}, want int64) {
	t.Helper()
	for serial(c) != want {
		select {
		case <-read:
		case <-time.After(patience):
			t.Fatalf("the certificate is %d still, not %d", serial(c), want)
		}
	}
}

// TestWatchWhatIsReplacedMeanwhile: a directory may be gone between the look at the
// link to it and the watch, and then another one is there.
func TestWatchWhatIsReplacedMeanwhile(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "data", "tls.crt")
	replace := func(n int) error {
		version := filepath.Join(dir, strconv.Itoa(n))
		return errors.Join(os.Mkdir(version, 0o700), os.WriteFile(filepath.Join(version, "tls.crt"), nil, 0o600),
			os.Symlink(version, filepath.Join(dir, "new")), os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "data")),
			os.RemoveAll(filepath.Join(dir, strconv.Itoa(n-1))))
	}
	require.NoError(t, replace(1))
	notify, err := fsnotify.NewWatcher()
	require.NoError(t, err)
	defer notify.Close()
	go func() { // who is not read from does not go on
		for range notify.Events {
		}
	}()
	end, replaced := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for n := 2; err == nil; n++ {
			select {
			case <-end:
				replaced <- nil
				return
			default:
				err = replace(n)
			}
		}
		replaced <- err
	}()
	w := &watcher{w: notify}
	for range 2000 {
		if err = w.follow([]string{file}); err != nil {
			break
		}
	}
	close(end)
	require.NoError(t, <-replaced)
	require.NoError(t, err)
}

// TestWaysToReplaceACertificate: each of them is noticed, again and again.
func TestWaysToReplaceACertificate(t *testing.T) {
	link := func(t *testing.T, target, path string) {
		t.Helper()
		require.NoError(t, os.Symlink(target, path+".new"))
		require.NoError(t, os.Rename(path+".new", path))
	}
	for _, tc := range []struct {
		name string
		// replace makes dir/tls.crt and dir/tls.key the pair with that number.
		replace func(t *testing.T, dir string, number int64)
	}{
		{"written in place", func(t *testing.T, dir string, number int64) { writePair(t, dir, number) }},
		{"renamed", func(t *testing.T, dir string, number int64) {
			cert, key := newPair(t, number, time.Now().Add(time.Hour))
			write(t, filepath.Join(dir, "new.crt"), cert)
			write(t, filepath.Join(dir, "new.key"), key)
			require.NoError(t, os.Rename(filepath.Join(dir, "new.crt"), filepath.Join(dir, "tls.crt")))
			require.NoError(t, os.Rename(filepath.Join(dir, "new.key"), filepath.Join(dir, "tls.key")))
		}},
		{"removed and made again", func(t *testing.T, dir string, number int64) {
			os.Remove(filepath.Join(dir, "tls.crt"))
			os.Remove(filepath.Join(dir, "tls.key"))
			writePair(t, dir, number)
		}},
		{"by Kubernetes", func(t *testing.T, dir string, number int64) {
			version := filepath.Join(dir, "..version"+string(rune('0'+number)))
			require.NoError(t, os.Mkdir(version, 0o700))
			writePair(t, version, number)
			before, _ := os.Readlink(filepath.Join(dir, "..data"))
			link(t, filepath.Base(version), filepath.Join(dir, "..data"))
			if before == "" {
				link(t, "..data/tls.crt", filepath.Join(dir, "tls.crt"))
				link(t, "..data/tls.key", filepath.Join(dir, "tls.key"))
				return
			}
			require.NoError(t, os.RemoveAll(filepath.Join(dir, before)))
		}},
		{"links into an archive", func(t *testing.T, dir string, number int64) {
			live := filepath.Join(dir, "live", "site")
			require.NoError(t, os.MkdirAll(live, 0o700))
			archive := filepath.Join(dir, "archive", string(rune('0'+number)))
			require.NoError(t, os.MkdirAll(archive, 0o700))
			writePair(t, archive, number)
			for _, f := range []string{"tls.crt", "tls.key"} {
				link(t, "../../archive/"+filepath.Base(archive)+"/"+f, filepath.Join(live, f))
				if _, err := os.Lstat(filepath.Join(dir, f)); err != nil {
					link(t, filepath.Join(live, f), filepath.Join(dir, f))
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			tc.replace(t, dir, 1)
			c, read := watched(t, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
			for number := int64(1); number <= 5; number++ {
				if number > 1 {
					tc.replace(t, dir, number)
				}
				becomes(t, c, read, number)
			}
		})
	}
}

// TestOtherPathsAreWatchedAfterAReload: new paths, from the configuration.
func TestOtherPathsAreWatchedAfterAReload(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	certFile, keyFile := writePair(t, first, 1)
	c, read := watched(t, certFile, keyFile)
	certFile, keyFile = writePair(t, second, 2)
	require.NoError(t, c.load(pairFiles{certFile, keyFile}))
	require.EqualValues(t, 2, serial(c))
	<-read // the watcher has followed
	writePair(t, second, 3)
	becomes(t, c, read, 3)
}

func TestWay(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.MkdirAll(at("a/b"), 0o700))
	require.NoError(t, os.WriteFile(at("a/b/f"), nil, 0o600))
	require.NoError(t, os.Symlink("a/b", at("l")))
	require.NoError(t, os.Symlink("../b/f", at("a/b/m")))
	require.NoError(t, os.Symlink(at("l/m"), at("n")))
	require.NoError(t, os.Symlink("loop", at("loop")))
	require.NoError(t, os.Symlink("gone/x", at("away")))
	for _, tc := range []struct {
		file string
		want []string
	}{
		{"a/b/f", []string{"a/b/f"}},
		{"l/f", []string{"l", "a/b/f"}},
		{"n", []string{"n", "l", "a/b/m", "a/b/f"}},
		{"l/../b/f", []string{"b"}}, // Abs cleans what was given
		{"away", []string{"away", "gone"}},
		{"missing", []string{"missing"}},
	} {
		var want []string
		for _, w := range tc.want {
			want = append(want, at(w))
		}
		require.Equal(t, want, way(at(tc.file)), tc.file)
	}
	require.Len(t, way(at("loop")), maxLinks+1)
}

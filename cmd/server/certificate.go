package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// certificate is the certificate of --https, which is replaced while it is
// served: connections that come later get the new one. One that can't be used
// is refused, and the one before it stays.
type certificate struct {
	log     *slog.Logger
	now     atomic.Pointer[pair]
	changed chan struct{} // receives when the paths may be others; of capacity 1

	mu    sync.Mutex // of files, and of replacing
	files pairFiles
}

// pairFiles are the paths of a certificate and its key.
type pairFiles struct{ cert, key string }

// pair is a certificate with its key.
type pair struct {
	tls.Certificate
	digest [sha256.Size]byte // of both files
}

// loadPair reads a certificate, its chain and its key. It refuses what can't be
// served, and what looks half written.
func loadPair(certFile, keyFile string) (*pair, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		path string
		text []byte
	}{{certFile, cert}, {keyFile, key}} {
		if !wholePEM(f.text) {
			return nil, fmt.Errorf("%s: a PEM block in it has no end: it is half written, or broken", f.path)
		}
	}
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%d ", len(cert))
	sum.Write(cert)
	sum.Write(key)
	return &pair{Certificate: c, digest: [sha256.Size]byte(sum.Sum(nil))}, nil
}

// wholePEM tells whether every block that begins in text also ends. The parser
// skips one that does not, so that a chain that lost its end would be taken.
func wholePEM(text []byte) bool {
	begun := bytes.Count(text, []byte("-----BEGIN "))
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return begun == 0
		}
		begun--
	}
}

// newCertificate loads the first one, without which nothing can be served.
func newCertificate(files pairFiles, log *slog.Logger) (*certificate, error) {
	c := &certificate{log: log, changed: make(chan struct{}, 1)}
	if err := c.load(files); err != nil {
		return nil, err
	}
	return c, nil
}

// get is for tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &c.now.Load().Certificate, nil
}

// load reads the pair from these files, and from now on from them. On an error
// nothing has changed.
func (c *certificate) load(files pairFiles) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.readable(files)
	if err != nil {
		return err
	}
	if c.files != files {
		c.files = files
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
	c.replaceLocked(p)
	return nil
}

// reload reads the pair again from the files that it came from, because they
// may have changed.
func (c *certificate) reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.readable(c.files)
	if err == nil {
		c.replaceLocked(p)
		return
	}
	c.log.Error("the new certificate is refused, the one before it stays",
		"error", err, "cert", c.files.cert, "key", c.files.key, "not_after", c.now.Load().Leaf.NotAfter)
}

var errExpired = errors.New("the certificate has expired")

// readable is loadPair, and refuses one that has expired, unless there is none
// before it.
func (c *certificate) readable(files pairFiles) (*pair, error) {
	p, err := loadPair(files.cert, files.key)
	if err != nil {
		return nil, err
	}
	if leaf := p.Leaf; time.Now().After(leaf.NotAfter) {
		if before := c.now.Load(); before != nil && before.digest != p.digest {
			return nil, fmt.Errorf("%s: %w, on %s", files.cert, errExpired, leaf.NotAfter.Format(time.RFC3339))
		}
	}
	return p, nil
}

func (c *certificate) replaceLocked(p *pair) {
	if before := c.now.Load(); before != nil && before.digest == p.digest {
		return
	}
	c.now.Store(p)
	leaf := p.Leaf
	attrs := []any{
		"subject", leaf.Subject.String(), "names", leaf.DNSNames, "addresses", leaf.IPAddresses, "serial", leaf.SerialNumber.Text(16),
		"not_after", leaf.NotAfter, "cert", c.files.cert,
	}
	if time.Now().After(leaf.NotAfter) {
		c.log.Warn("the certificate has expired", attrs...)
		return
	}
	c.log.Info("certificate", attrs...)
}

// paths are the files to watch.
func (c *certificate) paths() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return []string{c.files.cert, c.files.key}
}

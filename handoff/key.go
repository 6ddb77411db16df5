package handoff

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The shared key: how two processes whose user ids say nothing, because each is in
// a user namespace of its own, know each other. Each shows that it has the key
// without sending it, before anything else is said:
//
//	dialler                      who answers
//	prove {nonce}            →
//	                         ←   proof {nonce, mac}
//	proof {mac}              →
//	                         ←   ok
//
// What is signed has both nonces, so that nothing can be used again; the signer's
// side, so that nothing can be sent back; and the file of the socket, so that
// somebody with a socket of his own at the path can't pass the words on to a
// process at another one.

const (
	minKeyLen = 16   // bytes: a secret, not a password
	maxKeyLen = 4096 // bytes
	nonceLen  = 32
	macLen    = sha256.Size
)

// sharedKey is a secret that both sides have; nil is none. It is not changed.
type sharedKey []byte

// checkKey refuses what is no key; nil is none, and fine.
func checkKey(key []byte) error {
	if key != nil && (len(key) < minKeyLen || len(key) > maxKeyLen) {
		return fmt.Errorf("a shared key has %d to %d bytes, not %d (make one of 32 random bytes)", minKeyLen, maxKeyLen, len(key))
	}
	return nil
}

// ReadKey reads a shared key for Config.Key or Client.Key: all of a regular file but
// the end of its last line, if that has one ("\n" or "\r\n"). A symbolic link is
// followed. The caller owns the key. The error is the system's, or says that the file
// is no regular one, that everybody may write to it, or that the key has fewer than 16
// or more than 4096 bytes. That everybody may read it is no error, since container
// engines hand out secrets so. Safe for concurrent use.
func ReadKey(path string) ([]byte, error) {
	// O_NONBLOCK: a named pipe without a writer would be waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: the file of a shared key is a regular one, and this is not", path)
	case info.Mode().Perm()&0o002 != 0:
		return nil, fmt.Errorf("%s: everybody may write to the file of the shared key, mode %04o (chmod 0600)", path, info.Mode().Perm())
	}
	key, err := io.ReadAll(io.LimitReader(f, maxKeyLen+3))
	if err != nil {
		return nil, err
	}
	if rest, ok := bytes.CutSuffix(key, []byte("\n")); ok {
		key = bytes.TrimSuffix(rest, []byte("\r"))
	}
	if err := checkKey(key); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// prover is a side of a connection.
type prover string

const (
	proverDials   prover = "dials"
	proverAnswers prover = "answers"
)

// mac signs, as side, the nonces of who dials and who answers on a connection
// through the socket whose file is id.
func (k sharedKey) mac(side prover, dials, answers []byte, id fileID) []byte {
	h := hmac.New(sha256.New, k)
	var n [8]byte
	number := func(v uint64) []byte {
		binary.BigEndian.PutUint64(n[:], v)
		return n[:]
	}
	for _, field := range [][]byte{[]byte("handoff shared key, version 1"), []byte(side), dials, answers} {
		h.Write(number(uint64(len(field)))) // no two lists of fields look the same
		h.Write(field)
	}
	h.Write(number(id.Dev))
	h.Write(number(id.Ino))
	return h.Sum(nil)
}

// signed says whether sum is mac's.
func (k sharedKey) signed(sum []byte, side prover, dials, answers []byte, id fileID) bool {
	return hmac.Equal(sum, k.mac(side, dials, answers, id))
}

func newNonce() []byte {
	b := make([]byte, nonceLen)
	rand.Read(b) // never returns an error
	return b
}

var (
	errKeysDiffer = errors.New("the shared keys differ (or the file at the path is not that of the process that answers)")

	// errUnproven: the path is to be looked at again.
	errUnproven = errors.New("the connection ended, or the socket's file was replaced, before the shared key was proven")
)

// prove makes sure, over c, which was made through the file id, that the other end
// has the key, and shows it the same. byIDs is what a.check says of that process:
// if that is nil, it need not have one. Nothing but frames without descriptors is
// sent or taken. The error wraps ErrPermission, ErrSilent, ErrBadAnswer or
// errUnproven, or is the end of ctx.
func (a allow) prove(ctx context.Context, c *conn, id fileID, byIDs error) error {
	whole := ctx
	if a.Patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.Patience)
		defer cancel()
	}
	err := a.exchangeProofs(ctx, c, id, byIDs)
	switch {
	case err == nil:
		// What the end of ctx would have set must not outlive it.
		return c.setReadDeadline(time.Time{})
	case ctx.Err() != nil && whole.Err() == nil:
		who, _ := c.peer()
		return fmt.Errorf("%w (%s)", ErrSilent, who.where())
	case errors.Is(err, ErrNoAnswer):
		return errUnproven
	}
	return err
}

func (a allow) exchangeProofs(ctx context.Context, c *conn, id fileID, byIDs error) error {
	other := &operatorConn{c: c}
	ask := func(f *frame) (*frame, error) {
		b, err := f.encode()
		if err != nil {
			return nil, err
		}
		if b, err = other.exchange(ctx, b); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		f, err = decode(b)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrBadAnswer, err)
		case f.Type == msgError && f.Code == CodePermission:
			return nil, fmt.Errorf("%w (says the process at the path): %s", ErrPermission, f.Text)
		}
		return f, nil
	}
	mine := newNonce()
	f, err := ask(&frame{Type: msgProve, Nonce: mine})
	switch {
	case err != nil:
		return err
	case f.Type == msgError && byIDs == nil:
		return nil // it has no key, or does not know of keys, and needs none
	case f.Type == msgError && f.Code == "unknown_type":
		return fmt.Errorf("%w, and it has no shared key", byIDs)
	case f.Type == msgError:
		return fmt.Errorf("%w, and it does not prove the shared key: %s", byIDs, f.Text)
	case f.Type != msgProof || f.Nonce == nil:
		return fmt.Errorf("%w: it is of type %s instead of proof", ErrBadAnswer, f.Type)
	}
	theirs := f.Nonce
	proven := !bytes.Equal(mine, theirs) && a.Key.signed(f.MAC, proverAnswers, mine, theirs, id)
	if !proven && byIDs != nil {
		// For its log. Nothing is signed for a process that may be anybody's.
		say(c, &frame{Type: msgError, Code: CodePermission, Text: errKeysDiffer.Error()})
		return fmt.Errorf("%w: %w", ErrPermission, errKeysDiffer)
	}
	f, err = ask(&frame{Type: msgProof, MAC: a.Key.mac(proverDials, mine, theirs, id)})
	switch {
	case err != nil:
		return err
	case f.Type != msgOK:
		return fmt.Errorf("%w: it is of type %s instead of ok", ErrBadAnswer, f.Type)
	}
	return nil
}

// answerProof is the other side of prove, once asked was read from c, which t has and
// which came through the socket whose file is id. It says the last word. The error
// says why the peer has not proven the key; a peer that is trusted by byIDs goes on
// without.
func (p *Process) answerProof(c *conn, t *connTable, asked *frame, id fileID, byIDs error) error {
	key := p.allow().Key
	mine := newNonce()
	err := say(c, &frame{Type: msgProof, Nonce: mine, MAC: key.mac(proverAnswers, asked.Nonce, mine, id)})
	if err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	f, err := p.question(c)
	switch {
	case err != nil:
		return err
	case f.Type == msgError:
		return errKeysDiffer // it says so, whatever else it says
	case f.Type != msgProof || f.Nonce != nil:
		return errors.New("the proof of the shared key was expected")
	case !key.signed(f.MAC, proverDials, asked.Nonce, mine, id) && byIDs != nil:
		return errKeysDiffer
	case !key.signed(f.MAC, proverDials, asked.Nonce, mine, id):
		if log := p.strangerLog(c); log != nil {
			log.Warn("a peer has another shared key; it is trusted by its user all the same")
		}
	}
	t.trust(c) // before it knows
	if err := say(c, p.okFrame("")); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// proofOutOfPlace answers prove or proof where none belongs. A process that does not
// know them says the same code.
func (p *Process) proofOutOfPlace() *frame {
	if p.cfg.Key == nil {
		return refusal("unknown_type", "this process has no shared key", "start it with the same one, or ask without")
	}
	return refusal("bad_request", "the shared key is proven at the beginning of a connection, and once", "")
}

// lineLimit bounds the lines that strangers cause in the log. The zero value is
// ready.
type lineLimit struct {
	mu      sync.Mutex
	since   time.Time // of the first of n
	n, left int
}

// strangerLog is nil if a line about who is at the other end of c would be one too
// many.
func (p *Process) strangerLog(c *conn) *slog.Logger {
	left, ok := p.strangers.next(time.Now())
	if !ok {
		return nil
	}
	who, _ := c.peer()
	log := p.Logger().With("socket", c.path(), "peer_pid", who.PID, "peer_uid", who.UID, "peer_gid", who.GID)
	if left > 0 {
		log = log.With("not_logged", left)
	}
	return log
}

const (
	strangerLines  = 10
	strangerWindow = time.Minute
)

// next says whether a line may be written now, and how many were not before it.
func (l *lineLimit) next(now time.Time) (left int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= strangerWindow {
		l.since, l.n = now, 0
	}
	if l.n++; l.n > strangerLines {
		l.left++
		return 0, false
	}
	left, l.left = l.left, 0
	return left, true
}

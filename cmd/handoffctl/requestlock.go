package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lockPause is between two tries for a lock.
const lockPause = 20 * time.Millisecond

// lockRequest keeps other runs with the same request id from starting CMD too,
// until this one's request is in the status, and from checking it too. The lock is a file beside the
// control socket that goes with its last holder. Whoever may not write there
// goes without: the directory belongs to the user that deploys.
//
// release may be called more than once.
func lockRequest(ctx context.Context, socket, request string) (release func(), err error) {
	sum := sha256.Sum256([]byte(request))
	path := socket + "." + hex.EncodeToString(sum[:6]) + ".lock"
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return func() {}, nil
		}
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil && isAt(f, path):
			return sync.OnceFunc(func() {
				os.Remove(path) // while it is locked, so that it is not another's
				f.Close()
			}), nil
		case err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			f.Close()
			return func() {}, nil
		}
		f.Close()
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, &failure{code: exitUnknown, text: "another run with request " + request + " is starting CMD, or checks it", hint: "handoffctl status shows what becomes of it"}
		}
	}
}

// isAt says whether f is still the file at path: its last holder removes it.
func isAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

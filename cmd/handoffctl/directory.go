package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// directoryMode lets nobody in but the owner, and root.
const directoryMode = 0o700

func newDirectory(a *app) *cobra.Command {
	to := &owner{uid: os.Geteuid(), gid: os.Getegid()}
	cmd := &cobra.Command{
		Use:   "directory",
		Short: "Make the directory of the control socket, and give it to the service's user",
		Long: `It is for whoever gives a container a directory that the container's user can't
use: Kubernetes makes that of a hostPath root's, and lets everybody write to an
emptyDir, where anyone could put a socket of his own. A directory that is missing
is made with mode 0700 (the one that it is in must exist). One that is there is
given away only while it is empty, and root's or the caller's own. One that is
fit stays as it is: it may be run any number of times.`,
		Example: `  handoffctl --socket /run/app/control.sock directory
  handoffctl --socket /run/app/control.sock directory --owner 65532:65532
  HANDOFF_SOCKET=/run/app/control.sock handoffctl directory --owner 1000 --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(cmd)
			if err != nil {
				return err
			}
			r := a.newResult("directory", c)
			dir := filepath.Dir(c.Socket)
			if r.Changed, err = makeDirectory(dir, *to); err == nil {
				r.Text = fmt.Sprintf("%s is uid %d's", dir, to.uid)
				if !r.Changed {
					r.Text += " already"
				}
			}
			return a.finish(r, nil, err)
		},
	}
	cmd.Flags().Var(to, "owner", "`UID[:GID]` of the service, in numbers (default this user and group)")
	cmd.Flags().Lookup("owner").DefValue = "" // the text says it
	return cmd
}

// owner is a flag: who gets the directory.
type owner struct{ uid, gid int }

func (o *owner) String() string { return fmt.Sprintf("%d:%d", o.uid, o.gid) }
func (o *owner) Type() string   { return "owner" }

// Set takes numbers only: an image without /etc/passwd has no names. The group is
// the number of the user where it is not given, as in images it mostly is.
func (o *owner) Set(s string) error {
	uid, gid, both := strings.Cut(s, ":")
	if !both {
		gid = uid
	}
	u, err := strconv.ParseUint(uid, 10, 31)
	g, err2 := strconv.ParseUint(gid, 10, 31)
	if err != nil || err2 != nil {
		return errors.New("it must be a number, or two with a colon between them")
	}
	o.uid, o.gid = int(u), int(g)
	return nil
}

// makeDirectory makes dir one that a process of that user takes for its control
// socket (checkDirectory in the library), and tells whether it had to do
// anything. CAP_CHOWN is all that it needs to give away what is root's.
func makeDirectory(dir string, to owner) (changed bool, err error) {
	switch err := os.Mkdir(dir, directoryMode); {
	case err == nil:
		changed = true
	case errors.Is(err, fs.ErrNotExist):
		return false, &failure{
			code: exitRefused, text: fmt.Sprintf("%s can't be made: %s does not exist", dir, filepath.Dir(dir)),
			hint: "mount the volume there, or make that one first", err: err,
		}
	case !errors.Is(err, fs.ErrExist):
		return false, directoryFailure(err)
	}
	// Without O_NOFOLLOW a link would have the directory that it points to given
	// away. Whose it is decides whether it can be read at all, so look first.
	info, err := os.Lstat(dir)
	if err != nil {
		return changed, directoryFailure(err)
	}
	if !info.IsDir() {
		return changed, &failure{
			code: exitRefused, text: dir + " is not a directory", hint: "move it away, or name another path with --socket",
		}
	}
	st := info.Sys().(*syscall.Stat_t)
	if fit(st, to) {
		return changed, nil
	}
	if uid := int(st.Uid); uid != to.uid && uid != 0 && uid != os.Geteuid() {
		return changed, &failure{
			code: exitRefused, text: fmt.Sprintf("%s belongs to uid %d, and not to root or to uid %d", dir, uid, to.uid),
			hint: "name that user with --owner, or another path with --socket",
		}
	}
	if err := giveAway(dir, info, to); err != nil {
		return changed, err
	}
	return true, nil
}

// giveAway makes the empty directory that was looked at that user's, with mode 0700.
func giveAway(dir string, looked fs.FileInfo, to owner) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return directoryFailure(err)
	}
	defer f.Close()
	// Who may write to the directory above, or to one above that, may have put another one there since.
	opened, err := f.Stat()
	if err != nil {
		return directoryFailure(err)
	}
	if !os.SameFile(looked, opened) {
		return &failure{
			code: exitRefused, text: dir + " was replaced by another directory just now",
			hint: "see who may write to the directories above it",
		}
	}
	// Of /run, say, nobody wants to find another owner.
	switch _, err := f.Readdirnames(1); {
	case err == nil:
		return &failure{
			code: exitRefused, text: dir + " is not empty, so it may be needed by others as it is",
			hint: "name a directory of the service's own with --socket",
		}
	case !errors.Is(err, io.EOF):
		return directoryFailure(err)
	}
	st := opened.Sys().(*syscall.Stat_t)
	// The owner last: afterwards it takes a further capability to change the mode.
	if err = f.Chmod(directoryMode); err == nil && (int(st.Uid) != to.uid || int(st.Gid) != to.gid) {
		err = f.Chown(to.uid, to.gid)
	}
	if err != nil {
		return directoryFailure(err)
	}
	return nil
}

// fit tells whether that user can use a directory as it is.
func fit(st *syscall.Stat_t, to owner) bool {
	const shared = syscall.S_ISVTX | 0o003 // as /tmp is: nobody can replace another user's file
	switch {
	case int(st.Uid) != to.uid && st.Uid != 0:
		return false
	case st.Mode&shared == shared:
		return true
	}
	return int(st.Uid) == to.uid && st.Mode&0o022 == 0 && st.Mode&0o300 == 0o300
}

// directoryFailure is for what the system says.
func directoryFailure(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return &failure{
			code: exitPermission, text: err.Error(), err: err,
			hint: "run this as root (with CAP_CHOWN, to give the directory to another user), or let root make the directory",
		}
	}
	return &failure{code: exitRefused, text: err.Error(), err: err}
}

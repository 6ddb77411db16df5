package handoff

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendEmpty sends a message of no bytes, with the control message oob.
// unix.Sendmsg would add a byte to it, as other languages do not.
func sendEmpty(fd int, oob []byte) error {
	var h unix.Msghdr
	if len(oob) > 0 {
		h.Control = &oob[0]
		h.SetControllen(len(oob))
	}
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)), unix.MSG_NOSIGNAL)
	if errno != 0 {
		return errno
	}
	return nil
}

package handoff

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// amongStrangers runs play in a user namespace in which nobody has a number: no
// process there is trusted by its ids, not even this one by itself. An ordinary user
// may make one, unless the system forbids it.
func amongStrangers(t *testing.T, play func(*testing.T)) {
	t.Helper()
	if inChild(t, func(string) {
		require.False(t, userIDs().full)
		require.Equal(t, int(userIDs().overflow), os.Geteuid())
		play(t)
	}) {
		return
	}
	cmd := childCommand(t, "stranger", quickExit)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	out, err := cmd.CombinedOutput()
	needUserNamespace(t, err)
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
}

// needUserNamespace skips where the system does not let this user make one.
func needUserNamespace(t *testing.T, err error) {
	t.Helper()
	if os.Geteuid() != 0 && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL)) {
		t.Skip("this user may not make a user namespace:", err)
	}
}

// strange connects to the socket at path without looking who is there.
func strange(t testing.TB, path string) *rawPeer {
	t.Helper()
	c, err := net.Dial("unixpacket", path)
	require.NoError(t, err)
	return newRawPeer(t, newConn(c.(*net.UnixConn)))
}

func idOf(t testing.TB, path string) fileID {
	t.Helper()
	id, isSocket, err := identify(path)
	require.NoError(t, err)
	require.True(t, isSocket)
	return id
}

// proves is an honest dialler's part, as far as the other side's proof.
func (r *rawPeer) asksForProof() (mine, theirs []byte, sum []byte) {
	r.t.Helper()
	mine = newNonce()
	r.say(&frame{Type: msgProve, Nonce: mine})
	f := r.hear(msgProof)
	return mine, f.Nonce, f.MAC
}

// With equal keys everything works that works among peers that know each other: a
// handoff that is taken back, one that is not, self sockets, a stop; and connections
// that move, reports of who drains, and an operator's wait for the end.
func TestStrangersWithOneKey(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		t.Run("handoffs", func(t *testing.T) {
			c := newChain(t)
			c.key = testKey
			c.handOver(t, "tcp", "127.0.0.1:0", nil)
		})
		t.Run("connections", func(t *testing.T) {
			c := newChain(t)
			c.key = testKey
			g := newGate(tell("one"))
			one := c.mover("tcp", "one", g)
			busy, idle := dialRaw(t, one.addr), dialRaw(t, one.addr)
			busy.send(get("/"))
			g.waitEntered(t)
			two := c.mover("tcp", "two", named("two"))
			c.reach(one.Process, StateDraining)
			c.movedFrom(one, 1)
			require.Equal(t, "two", idle.get("/", false))
			three := c.mover("tcp", "three", named("three"))
			c.wait(two.Process)
			// It has no link any more, and reports to one that it has never met.
			c.until("generation 1 reports", func() bool { return c.statusOf(1) != nil && c.statusOf(3) != nil })
			close(g.open)
			require.Equal(t, "one", busy.ok(false))
			c.movedFrom(one, 2)
			require.Equal(t, "three", busy.get("/", false))
			c.wait(one.Process)
			stopped := make(chan error, 1)
			go func() {
				_, err := c.client().StopAndWait(c.ctx)
				stopped <- err
			}()
			c.wait(three.Process)
			require.NoError(t, <-stopped)
			require.NoFileExists(t, c.socket)
		})
	})
}

// Without one, each side says no, with the reason and the remedy, and nothing has
// changed for the incumbent.
func TestStrangersWithoutOneKey(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		const number = "the peer runs as uid 65534 ("
		const remedy = "give both sides the same shared key"
		tests := []struct {
			name     string
			one, two []byte
			want     []string
			log      string
		}{
			{"none", nil, nil, []string{number, remedy}, ""},
			{"the successor has none", testKey, nil, []string{number, remedy}, ""},
			{"the incumbent has none", nil, testKey, []string{"says the process at the path", remedy}, number},
			{"different", testKey, otherKey, []string{"the shared keys differ"}, "the shared keys differ"},
		}
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				c := newChain(t)
				var log book
				c.key = test.one
				one, ln := c.serve("one", log.use)
				c.key = test.two
				refused := func(err error) {
					t.Helper()
					require.ErrorIs(t, err, ErrPermission)
					for _, s := range test.want {
						require.ErrorContains(t, err, s)
					}
				}
				_, err := Start(c.ctx, c.config("two"))
				refused(err)
				cfg := c.config("three")
				cfg.Takeover = Never
				_, err = Start(c.ctx, cfg)
				refused(err)
				_, err = c.client().Status(c.ctx)
				refused(err)
				_, err = c.client().StopAndWait(c.ctx)
				refused(err)
				require.Equal(t, "1", asked(t, ln.Addr()))
				require.Equal(t, StateServing, one.State())
				if test.log != "" {
					c.until("it is in the log", func() bool {
						return strings.Contains(log.String(), "refused a connection: this user may not ask") && strings.Contains(log.String(), test.log)
					})
				}
			})
		}
	})
}

// An allow list can't let in everybody without a number.
func TestStrangersOnAnAllowList(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		n := userIDs().overflow
		for _, cfg := range []Config{{Socket: "s", AllowUIDs: []uint32{1, n}}, {Socket: "s", AllowGIDs: []uint32{n}, Key: testKey}} {
			require.ErrorContains(t, cfg.Validate(), "stands for everybody without a number in this user namespace, so it can't be allowed (use a shared key)")
			_, err := Start(t.Context(), cfg)
			require.ErrorContains(t, err, "use a shared key")
		}
		_, err := (&Client{Socket: "s", AllowUIDs: []uint32{n}}).Status(t.Context())
		require.ErrorIs(t, err, ErrPermission)
		require.ErrorContains(t, err, "use a shared key")
	})
}

// A directory whose owner has no number here will do with a key, and only if nobody
// else may write to it, as with any owner.
func TestStrangersDirectory(t *testing.T) {
	owners := func(key sharedKey) []uint32 { return allow{UIDs: []uint32{5}, Key: key}.owners() }
	if userIDs().full {
		require.Equal(t, []uint32{5}, owners(testKey))
	}
	amongStrangers(t, func(t *testing.T) {
		require.Equal(t, []uint32{5}, owners(nil))
		require.Equal(t, []uint32{5, userIDs().overflow}, owners(testKey))
		dir := socketDir(t)
		require.NoError(t, os.Chmod(dir, 0o777))
		_, _, _, err := meet(t.Context(), filepath.Join(dir, "s"), allow{Key: testKey})
		require.ErrorIs(t, err, ErrDirectory)
	})
}

// Who has not proven the key can do nothing else at the control socket, and at the
// self socket.
func TestStrangersAtTheSocket(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		c := newChain(t)
		c.key = testKey
		var log book
		one, ln := c.serve("one", c.withSelf("one"), log.use)
		letRightsPass(t, one)
		probe := newProbe(t)
		var replay []byte // a proof that was good once
		{
			r := strange(t, c.socket)
			mine, theirs, sum := r.asksForProof()
			require.True(t, sharedKey(testKey).signed(sum, proverAnswers, mine, theirs, idOf(t, c.socket)))
			replay = sharedKey(testKey).mac(proverDials, mine, theirs, idOf(t, c.socket))
			r.say(&frame{Type: msgProof, MAC: replay})
			r.hear(msgOK)
			r.say(&frame{Type: msgStatus})
			r.hear(msgStatus)
			require.NoError(t, r.c.Close())
		}
		say := func(f *frame) func(*rawPeer, fileID) { return func(r *rawPeer, _ fileID) { r.say(f) } }
		push := func(s string) func(*rawPeer, fileID) {
			return func(r *rawPeer, _ fileID) { r.push([]byte(s)) }
		}
		proof := func(sign func(mine, theirs, sum []byte, id fileID) []byte) func(*rawPeer, fileID) {
			return func(r *rawPeer, id fileID) {
				mine, theirs, sum := r.asksForProof()
				r.say(&frame{Type: msgProof, MAC: sign(mine, theirs, sum, id)})
			}
		}
		afterProve := func(f *frame, fds ...*descriptor) func(*rawPeer, fileID) {
			return func(r *rawPeer, _ fileID) {
				r.asksForProof()
				b, err := f.encode()
				require.NoError(r.t, err)
				r.push(b, fds...)
			}
		}
		k := sharedKey(testKey)
		const unproven, differ, misplaced = "nor has it proven the shared key", "the shared keys differ", "the proof of the shared key was expected"
		hello := &frame{Type: msgHello, Versions: &versionRange{1, 1}, Program: &program{PID: 1}}
		for _, test := range []struct {
			name       string
			do         func(*rawPeer, fileID)
			code, text string
		}{
			{"hello", say(hello), "permission", unproven},
			{"status", say(&frame{Type: msgStatus}), "permission", unproven},
			{"list_sockets", say(&frame{Type: msgListSockets}), "permission", unproven},
			{"drain", say(&frame{Type: msgDrain}), "permission", unproven},
			{"stop", say(&frame{Type: msgStop}), "permission", unproven},
			{"withdraw", say(&frame{Type: msgWithdraw, Request: "r"}), "permission", unproven},
			{"register", say(&frame{Type: msgRegister, Self: &GenerationStatus{Generation: 9}}), "permission", unproven},
			{"move", say(&frame{Type: msgMove, Generation: 9}), "permission", unproven},
			{"ok", say(&frame{Type: msgOK}), "permission", unproven},
			{"an error", say(&frame{Type: msgError, Code: "x"}), "permission", unproven},
			{"a proof that was not asked for", say(&frame{Type: msgProof, MAC: make([]byte, macLen)}), "permission", unproven},
			{"an unknown type", push(`{"type":"charm"}`), "permission", unproven},
			{"garbage", push("\x00open"), "bad_request", "not a JSON object"},
			{"nothing", push(""), "bad_request", "empty frame"},
			{"prove without a nonce", push(`{"type":"prove"}`), "bad_request", "the nonce is missing"},
			{"prove with an empty nonce", push(`{"type":"prove","nonce":""}`), "bad_request", "a nonce of 0 bytes"},
			{"prove with a short nonce", push(`{"type":"prove","nonce":"AAAA"}`), "bad_request", "a nonce of 3 bytes"},
			{"prove with a long nonce", push(`{"type":"prove","nonce":"` + strings.Repeat("A", 1000) + `"}`), "bad_request", "a nonce of 750 bytes"},
			{"prove with no base64", push(`{"type":"prove","nonce":"%%"}`), "bad_request", "base64"},
			{"prove with a descriptor", func(r *rawPeer, _ fileID) {
				b, err := (&frame{Type: msgProve, Nonce: newNonce()}).encode()
				require.NoError(r.t, err)
				r.push(b, probe.descriptor)
			}, "bad_request", "a frame with 1 descriptors, where none belong"},
			{"hello instead of the proof", afterProve(hello), "permission", misplaced},
			{"status instead of the proof", afterProve(&frame{Type: msgStatus}), "permission", misplaced},
			{"prove again instead of the proof", afterProve(&frame{Type: msgProve, Nonce: newNonce()}), "permission", misplaced},
			{"a proof with a nonce", afterProve(&frame{Type: msgProof, Nonce: newNonce(), MAC: make([]byte, macLen)}), "permission", misplaced},
			{"a proof with a descriptor", afterProve(&frame{Type: msgProof, MAC: make([]byte, macLen)}, probe.descriptor), "permission", "a frame with 1 descriptors"},
			{"an error instead of the proof", afterProve(&frame{Type: msgError, Code: "permission", Text: "no"}), "permission", differ},
			{"nothing signed", proof(func(_, _, _ []byte, _ fileID) []byte { return make([]byte, macLen) }), "permission", differ},
			{"another key", proof(func(a, b, _ []byte, id fileID) []byte { return sharedKey(otherKey).mac(proverDials, a, b, id) }), "permission", differ},
			{"the proof sent back", proof(func(_, _, sum []byte, _ fileID) []byte { return sum }), "permission", differ},
			{"the other side's proof", proof(func(a, b, _ []byte, id fileID) []byte { return k.mac(proverAnswers, a, b, id) }), "permission", differ},
			{"nonces exchanged", proof(func(a, b, _ []byte, id fileID) []byte { return k.mac(proverDials, b, a, id) }), "permission", differ},
			{"another socket's file", proof(func(a, b, _ []byte, id fileID) []byte { return k.mac(proverDials, a, b, fileID{id.Dev, id.Ino + 1}) }), "permission", differ},
			{"a proof of before", proof(func(_, _, _ []byte, _ fileID) []byte { return replay }), "permission", differ},
			{"a short proof", func(r *rawPeer, _ fileID) {
				r.asksForProof()
				r.push([]byte(`{"type":"proof","mac":"AAAA"}`))
			}, "permission", "a mac of 3"},
			{"a long proof", func(r *rawPeer, _ fileID) {
				r.asksForProof()
				r.push([]byte(`{"type":"proof","mac":"` + strings.Repeat("A", 40_000) + `"}`))
			}, "permission", "a mac of 30000"},
			{"an empty proof", func(r *rawPeer, _ fileID) {
				r.asksForProof()
				r.push([]byte(`{"type":"proof"}`))
			}, "permission", "the mac is missing"},
		} {
			for _, path := range []string{c.socket, c.selfPath("one")} {
				if strings.Contains(test.name, "descriptor") && path != c.socket {
					continue // the kernel does not let it pass
				}
				t.Run(test.name+" at "+filepath.Base(path), func(t *testing.T) {
					r := strange(t, path)
					r.t = t
					test.do(r, idOf(t, path))
					f := r.hear(msgError)
					require.Equal(t, test.code, f.Code, f.Text)
					require.Contains(t, f.Text, test.text)
					require.Empty(t, r.hearOut(), "it is closed")
				})
			}
		}
		require.NoError(t, probe.Close())
		probe.requireGone(t)
		require.Equal(t, "1", asked(t, ln.Addr()))
		require.Len(t, c.status().Generations, 1)

		// The key is proven at the beginning, and once.
		r := strange(t, c.socket)
		mine, theirs, _ := r.asksForProof()
		r.say(&frame{Type: msgProof, MAC: k.mac(proverDials, mine, theirs, idOf(t, c.socket))})
		r.hear(msgOK)
		for _, f := range []*frame{{Type: msgProve, Nonce: newNonce()}, {Type: msgProof, MAC: newNonce()}} {
			r.say(f)
			require.Equal(t, "bad_request", r.hear(msgError).Code)
		}
		r.say(&frame{Type: msgStatus})
		r.hear(msgStatus)

		lines := strings.Count(log.String(), "level=WARN")
		require.LessOrEqual(t, lines, strangerLines, "strangers don't fill the log")
		require.Positive(t, lines)
	})
}

// A stranger that says nothing is let go, and however many there are, nobody who may
// ask makes room for them.
func TestStrangersThatStay(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		c := newChain(t)
		c.key = testKey
		one, _ := c.serve("one")
		proven := func() *rawPeer {
			conn, err := dial(c.ctx, c.socket, allow{Key: testKey})
			require.NoError(t, err)
			return newRawPeer(t, conn)
		}
		first := proven()
		var silent []*rawPeer
		for i := range 2 * maxConns {
			r := strange(t, c.socket)
			if i%2 == 1 {
				r.asksForProof()
			}
			silent = append(silent, r)
		}
		second := proven()
		for _, r := range []*rawPeer{first, second} {
			r.say(&frame{Type: msgStatus})
			r.hear(msgStatus)
		}
		// Where all who ask are known, a stranger finds no room, and they lose none.
		known := []*rawPeer{first, second}
		for len(known) < maxConns {
			known = append(known, proven())
		}
		late := strange(t, c.socket)
		require.Empty(t, late.hearOut())
		for _, r := range known {
			r.say(&frame{Type: msgStatus})
			r.hear(msgStatus)
		}
		for _, r := range silent {
			r.hearOut()
		}
		one.Stop()
		c.wait(one)

		one, _ = c.serve("one", func(cfg *Config) { cfg.StepTimeout = time.Second })
		says := strange(t, c.socket)
		says.asksForProof()
		require.Empty(t, strange(t, c.socket).hearOut(), "closed by the deadline of a question")
		require.Empty(t, says.hearOut())
		one.Stop()
		c.wait(one)
	})
}

// Who answers at the path must prove the key before this process takes anything from
// it, or gives anything to it.
func TestStrangersAtThePath(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		k := sharedKey(testKey)
		say := func(f *frame) func(*testing.T, *rawPeer, *frame, fileID) {
			return func(t *testing.T, r *rawPeer, _ *frame, _ fileID) { r.say(f) }
		}
		push := func(s string) func(*testing.T, *rawPeer, *frame, fileID) {
			return func(t *testing.T, r *rawPeer, _ *frame, _ fileID) { r.push([]byte(s)) }
		}
		proof := func(sign func(asked, mine []byte, id fileID) (nonce, sum []byte)) func(*testing.T, *rawPeer, *frame, fileID) {
			return func(t *testing.T, r *rawPeer, asked *frame, id fileID) {
				nonce, sum := sign(asked.Nonce, newNonce(), id)
				r.say(&frame{Type: msgProof, Nonce: nonce, MAC: sum})
			}
		}
		// distrusts: the victim says so and sends nothing that is signed.
		distrusts := func(do func(*testing.T, *rawPeer, *frame, fileID)) func(*testing.T, *rawPeer, *frame, fileID) {
			return func(t *testing.T, r *rawPeer, asked *frame, id fileID) {
				do(t, r, asked, id)
				require.Equal(t, CodePermission, r.hear(msgError).Code)
			}
		}
		for _, test := range []struct {
			name string
			do   func(*testing.T, *rawPeer, *frame, fileID)
			is   error
			text string
		}{
			{"welcome", say(&frame{Type: msgWelcome, Version: 1, Generation: 1, Program: &program{PID: 1}}), ErrBadAnswer, "of type welcome instead of proof"},
			{"ok", say(&frame{Type: msgOK}), ErrBadAnswer, "of type ok instead of proof"},
			{"prove", say(&frame{Type: msgProve, Nonce: newNonce()}), ErrBadAnswer, "of type prove instead of proof"},
			{"no nonce", say(&frame{Type: msgProof, MAC: make([]byte, macLen)}), ErrBadAnswer, "instead of proof"},
			{"no mac", push(`{"type":"proof"}`), ErrBadAnswer, "the mac is missing"},
			{"a short mac", push(`{"type":"proof","mac":"AAAA"}`), ErrBadAnswer, "a mac of 3"},
			{"garbage", push("what"), ErrBadAnswer, "not a JSON object"},
			{"permission", say(&frame{Type: msgError, Code: CodePermission, Text: "go away"}), ErrPermission, "(says the process at the path): go away"},
			{"no key", say(&frame{Type: msgError, Code: "unknown_type", Text: "?"}), ErrPermission, "and it has no shared key"},
			{"busy", say(&frame{Type: msgError, Code: CodeBusy, Text: "later"}), ErrPermission, "and it does not prove the shared key: later"},
			{"nothing signed", distrusts(proof(func(_, mine []byte, _ fileID) (nonce, sum []byte) { return mine, make([]byte, macLen) })), ErrPermission, "the shared keys differ"},
			{"another key", distrusts(proof(func(asked, mine []byte, id fileID) (nonce, sum []byte) {
				return mine, sharedKey(otherKey).mac(proverAnswers, asked, mine, id)
			})), ErrPermission, "the shared keys differ"},
			{"the dialler's side", distrusts(proof(func(asked, mine []byte, id fileID) (nonce, sum []byte) {
				return mine, k.mac(proverDials, asked, mine, id)
			})), ErrPermission, "the shared keys differ"},
			{"the nonce sent back", distrusts(proof(func(asked, _ []byte, id fileID) (nonce, sum []byte) {
				return asked, k.mac(proverAnswers, asked, asked, id)
			})), ErrPermission, "the shared keys differ"},
			{"another socket's file", distrusts(proof(func(asked, mine []byte, id fileID) (nonce, sum []byte) {
				return mine, k.mac(proverAnswers, asked, mine, fileID{id.Dev + 1, id.Ino})
			})), ErrPermission, "the shared keys differ"},
			{"descriptors", func(t *testing.T, r *rawPeer, _ *frame, _ fileID) {
				probe := newProbe(t)
				r.say(&frame{Type: msgProof, Nonce: newNonce(), MAC: make([]byte, macLen)}, probe.descriptor)
				require.NoError(t, probe.Close())
				r.hear(msgError)
				probe.requireGone(t)
			}, ErrPermission, "the shared keys differ"},
			{"says nothing", func(*testing.T, *rawPeer, *frame, fileID) {}, ErrSilent, "(pid "},
			{"proves, and says nothing", func(t *testing.T, r *rawPeer, asked *frame, id fileID) {
				mine := newNonce()
				r.say(&frame{Type: msgProof, Nonce: mine, MAC: k.mac(proverAnswers, asked.Nonce, mine, id)})
				require.True(t, k.signed(r.hear(msgProof).MAC, proverDials, asked.Nonce, mine, id))
			}, ErrSilent, "(pid "},
			{"proves, and says something else", func(t *testing.T, r *rawPeer, asked *frame, id fileID) {
				mine := newNonce()
				r.say(&frame{Type: msgProof, Nonce: mine, MAC: k.mac(proverAnswers, asked.Nonce, mine, id)})
				r.hear(msgProof)
				r.say(&frame{Type: msgServe})
			}, ErrBadAnswer, "of type serve instead of ok"},
			{"proves, and refuses", func(t *testing.T, r *rawPeer, asked *frame, id fileID) {
				mine := newNonce()
				r.say(&frame{Type: msgProof, Nonce: mine, MAC: k.mac(proverAnswers, asked.Nonce, mine, id)})
				r.hear(msgProof)
				r.say(&frame{Type: msgError, Code: CodePermission, Text: "not you"})
			}, ErrPermission, "not you"},
		} {
			t.Run(test.name, func(t *testing.T) {
				q := newSquatter(t)
				cfg := q.config("victim")
				cfg.Key = testKey
				if test.is == ErrSilent {
					cfg.StepTimeout = time.Second // for which it waits
				}
				ended := make(chan error, 1)
				go func() {
					_, err := Start(q.ctx, cfg)
					ended <- err
				}()
				r := q.accept()
				asked := r.hear(msgProve)
				require.Len(t, asked.Nonce, nonceLen)
				test.do(t, r, asked, idOf(t, q.socket))
				err := <-ended
				require.ErrorIs(t, err, test.is)
				require.ErrorContains(t, err, test.text)
				require.Empty(t, r.hearOut(), "and nothing else is said")
			})
		}
	})
}

// A connection that ends before the key is proven is made again; an operator's and a
// draining generation's are no different.
func TestStrangersThatHangUp(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		q := newSquatter(t)
		ctx, cancel := context.WithCancel(q.ctx)
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := (&Client{Socket: q.socket, Key: testKey}).Status(ctx)
			ended <- err
		}()
		for range 3 {
			r := q.accept()
			r.hear(msgProve)
			require.NoError(t, r.c.Close())
		}
		r := q.accept()
		r.hear(msgProve)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.Empty(t, r.hearOut())
	})
}

// Somebody who has put a socket of his own at the path passes everything on to a
// process that has the key, and serves at another path.
func TestStrangerInBetween(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		c := newChain(t)
		c.key = testKey
		c.serve("one")
		q := newSquatter(t)
		cfg := q.config("victim")
		cfg.Key = testKey
		ended := make(chan error, 1)
		go func() {
			_, err := Start(q.ctx, cfg)
			ended <- err
		}()
		victim, real := q.accept(), strange(t, c.socket)
		real.say(victim.hear(msgProve))
		victim.say(real.hear(msgProof))
		require.Equal(t, CodePermission, victim.hear(msgError).Code)
		err := <-ended
		require.ErrorIs(t, err, ErrPermission)
		require.ErrorContains(t, err, "or the file at the path is not that of the process that answers")
		require.Empty(t, victim.hearOut())

		// Nor is it enough for the process behind: the victim signs its own path.
		id := idOf(t, q.socket)
		r := strange(t, c.socket)
		mine, theirs, _ := r.asksForProof()
		r.say(&frame{Type: msgProof, MAC: sharedKey(testKey).mac(proverDials, mine, theirs, id)})
		require.Contains(t, r.hear(msgError).Text, "the shared keys differ")
		require.Len(t, c.status().Generations, 1)
	})
}

// The file at the path is looked at before and after the connection is made.
func TestFileReplacedWhileConnecting(t *testing.T) {
	c := newChain(t)
	c.key = testKey
	c.serve("one")
	conn, err := net.Dial("unixpacket", c.socket)
	require.NoError(t, err)
	k := newConn(conn.(*net.UnixConn))
	defer k.Close()
	id := idOf(t, c.socket)
	a := allow{Key: testKey}
	require.ErrorIs(t, a.admit(c.ctx, k, c.socket, fileID{id.Dev, id.Ino + 1}), errUnproven)
	require.ErrorIs(t, a.admit(c.ctx, k, c.socket+".gone", id), errUnproven)
	require.True(t, passes(errUnproven))
	require.NoError(t, a.admit(c.ctx, k, c.socket, id))
	_, _, err = k.receiveNowFrame()
	require.NoError(t, err)
}

func (c *conn) receiveNowFrame() ([]byte, bool, error) {
	b, fds, ok, err := c.receiveNow()
	closeAll(fds)
	return b, ok, err
}

// Deadlines of the proof do not outlive it, and a cancelled Start is not held up by a
// process that says nothing.
func TestProofEndsWithItsContext(t *testing.T) {
	amongStrangers(t, func(t *testing.T) {
		q := newSquatter(t)
		ctx, cancel := context.WithCancelCause(q.ctx)
		cfg := q.config("victim")
		cfg.Key = testKey
		ended := make(chan error, 1)
		go func() {
			_, err := Start(ctx, cfg)
			ended <- err
		}()
		r := q.accept()
		r.hear(msgProve)
		cancel(io.ErrUnexpectedEOF)
		require.ErrorIs(t, <-ended, context.Canceled)
		require.Empty(t, r.hearOut())

		c := newChain(t)
		c.key = testKey
		c.serve("one")
		conn, err := dial(c.ctx, c.socket, allow{Key: testKey, Patience: time.Minute})
		require.NoError(t, err)
		defer conn.Close()
		conn.mu.Lock()
		require.True(t, conn.deadline.IsZero())
		conn.mu.Unlock()
	})
}

package handoff

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var someTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// everyFrame has one frame of each type with what it carries.
func everyFrame() []*frame {
	p := &program{PID: 7, Generation: 3, Label: "v3", Request: "r1", Started: someTime}
	self := &GenerationStatus{Generation: 3, State: "draining", PID: 7, Started: someTime, Open: map[string]int{"idle": 2}, Holds: map[string]int{"mail": 1}, Answered: 7, Unclaimed: []string{"tcp a"}}
	requests := []RequestStatus{{ID: "r1", Outcome: "released", Generation: 3, Time: someTime}}
	items := []manifestItem{
		{Name: "control", Kind: kindControl, Network: "unixpacket", Asked: "/s", Local: "/s", Domain: 1, Type: 5, File: fileID{Dev: 1, Ino: 2}},
		{Name: "web", Kind: kindStream, Network: "tcp", Asked: ":80", Local: "[::]:80", Domain: 10, Type: 1, Protocol: 6, Exclusive: true},
		{Name: "log", Kind: kindFile},
	}
	return []*frame{
		{Type: msgHello, Versions: &versionRange{1, 2}, Mode: Standby, Program: p, Files: []string{"log"}},
		{Type: msgGot, N: 3},
		{Type: msgRejected, Rejected: []rejection{{Index: 1, Reason: "not asked for"}}},
		{Type: msgReady, N: 2},
		{Type: msgServing},
		{Type: msgReleased},
		{Type: msgRevoked},
		{Type: msgAbort, Reason: whyProtocol, Text: "x"},
		{Type: msgWelcome, Version: 1, Generation: 4, Handoff: "id", Total: 3, Program: p, Requests: requests},
		{Type: msgBusy, Reason: whyHandoff, Text: "another", RetryMS: 100},
		{Type: msgRefuse, Code: "version", Text: "no"},
		{Type: msgSockets, First: 0, Sockets: items, Last: true},
		{Type: msgServe},
		{Type: msgRelease, Requests: requests},
		{Type: msgRevoke, Reason: whyRollback, Text: "back"},
		{Type: msgDraining, Self: self, Older: []GenerationStatus{*self}},
		{Type: msgBye},
		{Type: msgRegister, Self: self},
		{Type: msgStatus, After: &revision{Instance: "i", Revision: 9}, WaitMS: 1000},
		{Type: msgListSockets, Offset: 64},
		{Type: msgHandover, Request: "r1"},
		{Type: msgRollback},
		{Type: msgStop},
		{Type: msgStop, Generation: 3},
		{Type: msgDrain},
		{Type: msgHurry, Generation: 3},
		{Type: msgMove, Generation: 3},
		{Type: msgConnections, Sockets: items, Moved: []movedItem{{Listener: 1, Fresh: true, IdleMS: 7}}},
		{Type: msgKeep},
		{Type: msgWithdraw, Request: "r1"},
		{Type: msgOK, Already: true, Generation: 4, Request: "r1", Text: "done"},
		{Type: msgSocketList, Total: 1, List: []SocketInfo{{Name: "web", State: "fresh"}}},
		{Type: msgProve, Nonce: bytes.Repeat([]byte{1}, nonceLen)},
		{Type: msgProof, Nonce: bytes.Repeat([]byte{2}, nonceLen), MAC: bytes.Repeat([]byte{3}, macLen)},
		{Type: msgPing},
		{Type: msgPong},
		{Type: msgError, Code: "not_now", Text: "no", Hint: "wait"},
	}
}

func TestFramesRoundTrip(t *testing.T) {
	seen := map[msgType]bool{}
	for _, f := range everyFrame() {
		t.Run(f.Type.String(), func(t *testing.T) {
			b, err := f.encode()
			require.NoError(t, err)
			require.Contains(t, string(b), fmt.Sprintf(`"type":%q`, f.Type))
			got, err := decode(b)
			require.NoError(t, err)
			require.Equal(t, f, got)
		})
		seen[f.Type] = true
	}
	require.Len(t, seen, int(msgCount)-1, "a type is missing here")
}

func TestNamesOfTypes(t *testing.T) {
	names := map[string]bool{}
	for m := msgNone + 1; m < msgCount; m++ {
		require.NotEmpty(t, m.String())
		names[m.String()] = true
		var back msgType
		require.NoError(t, back.UnmarshalText([]byte(m.String())))
		require.Equal(t, m, back)
	}
	require.Len(t, names, int(msgCount)-1, "two types have one name")
	require.Equal(t, "msgType(200)", msgType(200).String())
}

// A later version may add fields and types.
func TestWhatIsUnknownIsPassedOver(t *testing.T) {
	f, err := decode([]byte(`{"type":"got","n":3,"colour":"red","nested":{"a":[1,2]}}`))
	require.NoError(t, err)
	require.Equal(t, &frame{Type: msgGot, N: 3}, f)
	for _, b := range []string{`{"type":"heartbeat","n":1}`, `{"type":""}`, `{}`, `{"n":1}`} {
		_, err = decode([]byte(b))
		require.ErrorIs(t, err, errUnknownType, b)
	}
}

func TestBounds(t *testing.T) {
	long := strings.Repeat("x", maxTextLen+1)
	p := func() *program { return &program{PID: 1} }
	hello := func() *frame { return &frame{Type: msgHello, Versions: &versionRange{1, 1}, Program: p()} }
	welcome := func() *frame { return &frame{Type: msgWelcome, Version: 1, Generation: 1, Program: p()} }
	item := manifestItem{Name: "a", Kind: kindStream}
	batch := func(change func(*manifestItem)) *frame {
		it := item
		change(&it)
		return &frame{Type: msgSockets, Sockets: []manifestItem{it}}
	}
	with := func(f *frame, change func(*frame)) *frame { change(f); return f }
	many := map[string]int{}
	for i := range maxListed + 1 {
		many[fmt.Sprint(i)] = 1
	}
	generation := func(change func(*GenerationStatus)) *frame {
		var g GenerationStatus
		change(&g)
		return &frame{Type: msgRegister, Self: &g}
	}
	for _, tc := range []struct {
		name  string
		f     *frame
		wrong string // "" means that it is allowed
	}{
		{"longest text", &frame{Type: msgError, Text: long[1:]}, ""},
		{"text", &frame{Type: msgError, Text: long}, "text of"},
		{"reason", &frame{Type: msgAbort, Reason: reason(long)}, "text of"},
		{"code", &frame{Type: msgError, Code: long}, "text of"},
		{"hint", &frame{Type: msgError, Hint: long}, "text of"},
		{"request", &frame{Type: msgHandover, Request: long}, "at most 128"},
		{"handoff", with(welcome(), func(f *frame) { f.Handoff = long }), "text of"},
		{"negative n", &frame{Type: msgGot, N: -1}, "negative"},
		{"negative first", &frame{Type: msgSockets, First: -1, Last: true}, "negative"},
		{"negative offset", &frame{Type: msgListSockets, Offset: -1}, "negative"},
		{"negative wait", &frame{Type: msgStatus, WaitMS: -1}, "negative"},
		{"negative retry", &frame{Type: msgBusy, RetryMS: -1}, "negative"},
		{"negative total", with(welcome(), func(f *frame) { f.Total = -1 }), "negative"},
		{"total", with(welcome(), func(f *frame) { f.Total = maxSockets + 2 }), "list"},
		{"greatest total", with(welcome(), func(f *frame) { f.Total = maxSockets + 1 }), ""},
		{"greatest batch", &frame{Type: msgSockets, Sockets: slices.Repeat([]manifestItem{item}, maxBatch)}, ""},
		{"batch", &frame{Type: msgSockets, Sockets: slices.Repeat([]manifestItem{item}, maxBatch+1)}, "list"},
		{"last index", &frame{Type: msgSockets, First: maxSockets, Sockets: []manifestItem{item}}, ""},
		{"index", &frame{Type: msgSockets, First: maxSockets + 1, Sockets: []manifestItem{item}}, "list"},
		{"index that overflows", &frame{Type: msgSockets, First: int(^uint(0) >> 1), Sockets: []manifestItem{item}}, "list"},
		{"rejections", &frame{Type: msgRejected, Rejected: make([]rejection, maxRejects+1)}, "list"},
		{"files", with(hello(), func(f *frame) { f.Files = slices.Repeat([]string{"a"}, maxFileNames+1) }), "list"},
		{"file name", with(hello(), func(f *frame) { f.Files = []string{"a\x00"} }), "control character"},
		{"older generations", &frame{Type: msgDraining, Older: make([]GenerationStatus, maxOlder+1)}, "list"},
		{"requests", with(welcome(), func(f *frame) { f.Requests = make([]RequestStatus, maxRequests+1) }), "list"},
		{"request id in a list", with(welcome(), func(f *frame) { f.Requests = []RequestStatus{{ID: long}} }), "longer than"},
		{"outcome in a list", with(welcome(), func(f *frame) { f.Requests = []RequestStatus{{ID: "a", Outcome: long}} }), "longer than"},
		{"reason in a list", with(welcome(), func(f *frame) { f.Requests = []RequestStatus{{ID: "a", Reason: long}} }), "longer than"},
		{"label", with(hello(), func(f *frame) { f.Program.Label = long }), "label"},
		{"request id", with(hello(), func(f *frame) { f.Program.Request = long }), "label"},
		{"label of a generation", generation(func(g *GenerationStatus) { g.Label = long }), "longer than"},
		{"state of a generation", generation(func(g *GenerationStatus) { g.State = long }), "longer than"},
		{"request of a generation", generation(func(g *GenerationStatus) { g.Request = long }), "longer than"},
		{"takeover of a generation", generation(func(g *GenerationStatus) { g.Takeover = long }), "longer than"},
		{"handoff of a generation", generation(func(g *GenerationStatus) { g.Handoff = long }), "longer than"},
		{"unclaimed of a generation", generation(func(g *GenerationStatus) { g.Unclaimed = []string{long} }), "longer than"},
		{"hold of a generation", generation(func(g *GenerationStatus) { g.Holds = map[string]int{long: 1} }), "longer than"},
		{"many holds", generation(func(g *GenerationStatus) { g.Holds = many }), "list"},
		{"many unclaimed", generation(func(g *GenerationStatus) { g.Unclaimed = make([]string, 65) }), "list"},
		{"kinds of a generation", generation(func(g *GenerationStatus) { g.Open = map[string]int{long: 1} }), "longer than"},
		{"no versions", &frame{Type: msgHello, Program: p()}, "versions"},
		{"versions", &frame{Type: msgHello, Versions: &versionRange{2, 1}, Program: p()}, "versions"},
		{"no program", &frame{Type: msgHello, Versions: &versionRange{1, 1}}, "program"},
		{"never", with(hello(), func(f *frame) { f.Mode = Never }), "never"},
		{"no version", with(welcome(), func(f *frame) { f.Version = 0 }), "missing"},
		{"generation 0", with(welcome(), func(f *frame) { f.Generation = 0 }), "missing"},
		{"welcome of nobody", with(welcome(), func(f *frame) { f.Program = nil }), "missing"},
		{"empty batch", &frame{Type: msgSockets}, "empty batch"},
		{"register without self", &frame{Type: msgRegister}, "self"},
		{"nonce", &frame{Type: msgProve, Nonce: make([]byte, nonceLen)}, ""},
		{"no nonce", &frame{Type: msgProve}, "the nonce is missing"},
		{"no mac", &frame{Type: msgProof, Nonce: make([]byte, nonceLen)}, "the mac is missing"},
		{"short nonce", &frame{Type: msgProve, Nonce: make([]byte, nonceLen-1)}, "a nonce of 31 bytes"},
		{"long nonce", &frame{Type: msgProve, Nonce: make([]byte, nonceLen+1)}, "a nonce of 33 bytes"},
		{"short mac", &frame{Type: msgProof, MAC: make([]byte, macLen-1)}, "a mac of 31"},
		{"long mac", &frame{Type: msgProof, MAC: make([]byte, maxFrame/2)}, "a mac of 30720"},
		{"kind", batch(func(it *manifestItem) { it.Kind = "disk" }), "kind"},
		{"no kind", batch(func(it *manifestItem) { it.Kind = "" }), "kind"},
		{"asked", batch(func(it *manifestItem) { it.Asked = long }), "address"},
		{"local", batch(func(it *manifestItem) { it.Local = long }), "address"},
		{"network", batch(func(it *manifestItem) { it.Network = "a very long network" }), "address"},
		{"no name", batch(func(it *manifestItem) { it.Name = "" }), "empty"},
		{"name", batch(func(it *manifestItem) { it.Name = strings.Repeat("x", maxNameLen+1) }), "at most"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := json.Marshal(tc.f)
			require.NoError(t, err)
			_, err = decode(b)
			if tc.wrong == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.wrong)
		})
	}
}

func TestNotAFrame(t *testing.T) {
	for _, b := range []string{
		"", "null", "[]", "1", `"hello"`, "{", `{"type":"got"}{"type":"got"}`, `{"type":1}`, `{"type":"got","n":"3"}`,
		`{"type":"got","n":1e99}`, `{"type":"hello","mode":"sideways"}`, "\x00\xff", strings.Repeat("[", 20_000),
	} {
		f, err := decode([]byte(b))
		require.Error(t, err, "%.30q gave %v", b, f)
	}
	_, err := decode([]byte(`{"type":"error","text":"` + strings.Repeat("x", maxFrame) + `"}`))
	require.ErrorIs(t, err, errFrameTooLong)
	_, err = (&frame{Type: msgOK, List: slices.Repeat([]SocketInfo{{Name: strings.Repeat("x", 1000)}}, 100)}).encode()
	require.ErrorIs(t, err, errFrameTooLong)
}

func TestNegotiate(t *testing.T) {
	for _, tc := range []struct {
		theirs versionRange
		want   int
		ok     bool
	}{
		{versionRange{1, 1}, 1, true},
		{versionRange{1, 9}, maxVersion, true},
		{versionRange{0, 1}, 1, true},
		{versionRange{0, 0}, 0, false},
		{versionRange{maxVersion + 1, maxVersion + 3}, 0, false},
		{versionRange{-5, -1}, 0, false},
	} {
		v, ok := negotiate(tc.theirs)
		require.Equal(t, tc.ok, ok, "%v", tc.theirs)
		if ok {
			require.Equal(t, tc.want, v)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "127.0.0.1:0", "ümläut ☃", strings.Repeat("x", maxNameLen)} {
		require.NoError(t, checkName(name))
	}
	for name, want := range map[string]string{
		"": "empty", strings.Repeat("x", maxNameLen+1): "at most", "\xff": "UTF-8", "a\nb": "control", "a\x7f": "control", "\u0085": "control",
	} {
		require.ErrorContains(t, checkName(name), want)
	}
}

func TestClip(t *testing.T) {
	require.Equal(t, "short", clip("short"))
	exact := strings.Repeat("x", maxTextLen)
	require.Equal(t, exact, clip(exact))
	for _, s := range []string{exact + "y", strings.Repeat("☃", maxTextLen), strings.Repeat("a☃", maxTextLen)} {
		got := clip(s)
		require.LessOrEqual(t, len(got), maxTextLen)
		require.Greater(t, len(got), maxTextLen-8)
		require.True(t, strings.HasSuffix(got, "…"))
		require.True(t, strings.HasPrefix(s, strings.TrimSuffix(got, "…")))
	}
}

// What was decoded without an error says the same after another round, and is
// within the bounds.
func FuzzDecode(f *testing.F) {
	for _, fr := range everyFrame() {
		b, err := fr.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{"", "{}", "null", `{"type":"heartbeat"}`, `{"type":"got","n":-1}`, `{"type":"error","text":"\ud800"}`, `{"TYPE":"got"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := decode(b)
		if err != nil {
			if fr != nil && fr.Type != msgNone && errors.Is(err, errUnknownType) {
				t.Fatalf("type %s is said to be unknown", fr.Type)
			}
			return
		}
		if fr.Type == msgNone || fr.Type >= msgCount {
			t.Fatalf("type %d was accepted", fr.Type)
		}
		if len(fr.Sockets) > maxBatch || fr.First+len(fr.Sockets) > maxSockets+1 || fr.N < 0 || len(fr.Text) > maxTextLen || len(fr.Requests) > maxRequests {
			t.Fatalf("out of bounds: %+v", fr)
		}
		again, err := fr.encode()
		if errors.Is(err, errFrameTooLong) {
			return // escapes can make it longer than it was
		}
		require.NoError(t, err)
		back, err := decode(again)
		require.NoError(t, err)
		third, err := back.encode()
		require.NoError(t, err)
		require.Equal(t, string(again), string(third))
	})
}

package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// browser is a headless chromium with one page. It is driven by the Chrome DevTools Protocol over a pair of pipes: JSON
// messages, each with a zero byte behind it.
type browser struct {
	t       *testing.T
	in      *os.File
	out     *bufio.Reader
	session string
	serial  int
}

// needChromium is needRoot for what only a browser can show. chromium needs no root, but the sandbox is off, for root
// can't have it.
func needChromium(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		require.Empty(t, os.Getenv("HANDOFF_TEST_ROOT"), "this test needs chromium: make deps")
		t.Skip("needs chromium; HANDOFF_TEST_ROOT=1 makes this a failure")
	}
	return path
}

// browse opens a page. The browser ends with the test.
func (s *service) browse(path, url string) *browser {
	s.t.Helper()
	theirIn, in, err := os.Pipe()
	require.NoError(s.t, err)
	out, theirOut, err := os.Pipe()
	require.NoError(s.t, err)
	log, err := os.Create(s.newLog("chromium"))
	require.NoError(s.t, err)
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--no-proxy-server",
		"--user-data-dir="+s.path("chromium"), "--remote-debugging-pipe")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // as descriptors 3 and 4
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	for _, f := range []*os.File{theirIn, theirOut, log} {
		f.Close()
	}
	require.NoError(s.t, err)
	b := &browser{t: s.t, in: in, out: bufio.NewReader(out)}
	s.t.Cleanup(func() {
		b.say("", "Browser.close", nil) // it ends its own processes, and is killed if it does not
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		in.Close()
		out.Close()
	})
	require.NoError(s.t, out.SetReadDeadline(time.Now().Add(2*patience)))
	var target struct {
		TargetID  string `json:"targetId"`
		SessionID string `json:"sessionId"`
	}
	b.call("Target.createTarget", map[string]any{"url": url}, &target)
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &target)
	b.session = target.SessionID
	return b
}

func (b *browser) say(session, method string, params any) (id int) {
	b.serial++
	message := map[string]any{"id": b.serial, "method": method}
	if params != nil {
		message["params"] = params
	}
	if session != "" {
		message["sessionId"] = session
	}
	text, err := json.Marshal(message)
	require.NoError(b.t, err)
	b.in.Write(append(text, 0)) // one that was not written has no answer
	return b.serial
}

// call asks for something and reads the answer; events that come before it are not of interest.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	id := b.say(b.session, method, params)
	for {
		text, err := b.out.ReadBytes(0)
		require.NoError(b.t, err, "%s", method)
		var answer struct {
			ID     int             `json:"id"`
			Result json.RawMessage `json:"result"`
			Error  json.RawMessage `json:"error"`
		}
		require.NoError(b.t, json.Unmarshal(bytes.TrimSuffix(text, []byte{0}), &answer))
		if answer.ID != id {
			continue
		}
		require.Empty(b.t, string(answer.Error), "%s", method)
		require.NoError(b.t, json.Unmarshal(answer.Result, result))
		return
	}
}

// shown is what the page says of itself.
type shown struct {
	Title      string
	Generation string
	Label      string
	Answered   int
	Failed     int
	Failures   int      // marks of failures in the strip
	Changes    []string // generations at whose first answer the strip has a mark
	Answers    map[string]int
	News       string
}

const readPage = `JSON.stringify((() => {
	const text = id => document.getElementById(id)?.textContent ?? '';
	return {
		title: document.title, generation: text('generation'), label: text('label'), news: text('news'),
		answered: Number(text('answered')), failed: Number(text('failed')),
		failures: document.querySelectorAll('#strip .failure').length,
		changes: [...document.querySelectorAll('#strip .change')].map(e => e.dataset.generation),
		answers: Object.fromEntries([...document.querySelectorAll('#generations tr')].map(e => [e.dataset.generation, Number(e.cells[3].textContent)])),
	};
})())`

// page waits until the page shows what match wants.
func (b *browser) page(ctx context.Context, what string, match func(shown) bool) shown {
	b.t.Helper()
	tick := time.NewTicker(5 * waitTick)
	defer tick.Stop()
	for {
		var result struct {
			Result struct{ Value string }
		}
		b.call("Runtime.evaluate", map[string]any{"expression": readPage, "returnByValue": true}, &result)
		var now shown
		require.NoError(b.t, json.Unmarshal([]byte(result.Result.Value), &now))
		if match(now) {
			return now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			require.FailNow(b.t, "the page does not show it", "%s: %+v", what, now)
		}
	}
}

// The page stays open in a browser while the version changes twice: it shows every generation, when it changed, and not
// one failure. When nobody is there any more it shows that too.
func TestRootPageFollowsHandoffs(t *testing.T) {
	path := needChromium(t)
	s := newService(t)
	s.serving("v1")
	b := s.browse(path, "http://"+s.address(web)+"/")
	var last *proc.Adopted
	for g := 1; ; g++ {
		name := fmt.Sprint(g)
		b.page(s.ctx(), "answers of generation "+name, func(now shown) bool { return now.Answers[name] >= 3 })
		if g == 3 {
			break
		}
		_, last = s.upgrade(fmt.Sprintf("v%d", g+1), []string{"--wait=released"})
	}
	now := b.page(s.ctx(), "the page", func(shown) bool { return true })
	require.Zero(t, now.Failed)
	require.Zero(t, now.Failures)
	require.Equal(t, []string{"1", "2", "3"}, now.Changes)
	require.Equal(t, "Generation 3", now.Title)
	require.Equal(t, "3", now.Generation)
	require.Equal(t, "v3", now.Label)
	require.Contains(t, now.News, "Changed from generation 2 to 3 at ")
	require.Equal(t, now.Answered, now.Answers["1"]+now.Answers["2"]+now.Answers["3"])

	// An answer of an older one that comes late is counted, and is no change.
	var none struct{}
	b.call("Runtime.evaluate", map[string]any{"expression": "show({ generation: 2, label: 'v2', pid: 1, started: '' }, 900, 0)"}, &none)
	late := b.page(s.ctx(), "the late answer", func(after shown) bool { return after.Answers["2"] > now.Answers["2"] })
	require.Equal(t, now.Changes, late.Changes)
	require.Equal(t, "3", late.Generation)

	s.kill(last, syscall.SIGKILL)
	now = b.page(s.ctx(), "a failure", func(now shown) bool { return now.Failed > 0 && now.Failures > 0 })
	require.Contains(t, now.News, "No answer at ")
}

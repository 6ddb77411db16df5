package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// logWriterEnv makes this test binary a process that writes a log: it names the
// file and the process.
const logWriterEnv = "HANDOFF_TEST_LOG_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(logWriterEnv); path != "" {
		os.Exit(writeLog(path, os.Args[1]))
	}
	os.Exit(m.Run())
}

const (
	logRecords = 100
	logRecord  = 200 << 10 // bytes; more than any buffer of the kernel's for pipes or pages
)

// writeLog writes long records as fast as it can, when it is told to begin.
func writeLog(path, name string) int {
	log, err := openLog(options{logFile: path, jsonLog: true}, io.Discard)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer log.close()
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1)) // its end
	text := strings.Repeat(name, logRecord)
	for i := range logRecords {
		log.Info(name, "n", i, "text", text)
	}
	return 0
}

// TestTwoGenerationsWriteOneLogFile: both write at the same time, and every
// record is whole.
func TestTwoGenerationsWriteOneLogFile(t *testing.T) {
	leak.Check(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "log")
	var begin []io.Closer
	var ready []io.Reader
	var writers []*exec.Cmd
	for _, name := range []string{"a", "b"} {
		cmd := exec.Command(exe, name)
		cmd.Env = append(os.Environ(), logWriterEnv+"="+path)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		begin, writers, ready = append(begin, in), append(writers, cmd), append(ready, out)
	}
	for _, r := range ready { // or one may have written all before the other has started
		_, err := io.ReadFull(r, make([]byte, len("ready\n")))
		require.NoError(t, err)
	}
	for _, b := range begin {
		require.NoError(t, b.Close())
	}
	for _, w := range writers {
		require.NoError(t, w.Wait())
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&^0o640)
	next := map[string]int{}
	turns, last := 0, ""
	for line := range bytes.Lines(readFile(t, path)) {
		var r struct {
			Msg  string
			N    int
			Text string
		}
		require.NoError(t, json.Unmarshal(line, &r), "%.100s", line)
		require.Equal(t, next[r.Msg], r.N)
		require.Equal(t, strings.Repeat(r.Msg, logRecord), r.Text)
		next[r.Msg]++
		if r.Msg != last {
			turns++
		}
		last = r.Msg
	}
	require.Equal(t, map[string]int{"a": logRecords, "b": logRecords}, next)
	require.Greater(t, turns, 2, "they wrote one after the other, which shows nothing")
}

func TestLogFileIsOpenedAgain(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	log, err := openLog(options{logFile: path}, io.Discard)
	require.NoError(t, err)
	defer log.close()
	log.Info("one")
	require.NoError(t, os.Rename(path, path+".1"))
	log.Info("two")
	require.NoError(t, log.reopen())
	log.Info("three")
	moved := string(readFile(t, path+".1"))
	require.Contains(t, moved, "msg=one")
	require.Contains(t, moved, "msg=two")
	require.NotContains(t, moved, "msg=three")
	require.Contains(t, string(readFile(t, path)), "msg=three")

	require.NoError(t, os.Rename(path, path+".2"))
	require.NoError(t, os.Mkdir(path, 0o700))
	require.Error(t, log.reopen())
	log.Info("four")
	require.Contains(t, string(readFile(t, path+".2")), "msg=four", "what could not be opened again is written on")
}

func TestLogLevelAndFormat(t *testing.T) {
	var out bytes.Buffer
	log, err := openLog(options{logLevel: slog.LevelWarn, jsonLog: true}, &out)
	require.NoError(t, err)
	log.Info("quiet")
	require.Empty(t, out.String())
	log.level.Set(slog.LevelDebug)
	log.Debug("loud")
	require.True(t, json.Valid(out.Bytes()), "%s", out.String())
	require.NoError(t, log.reopen(), "standard error stays")
}

// TestGoroutineDump: equal goroutines together, between two lines.
func TestGoroutineDump(t *testing.T) {
	var out bytes.Buffer
	log, err := openLog(options{}, &out)
	require.NoError(t, err)
	end := make(chan struct{})
	defer close(end)
	var begun sync.WaitGroup
	for range 5 {
		begun.Add(1)
		go waitForTheEnd(&begun, end)
	}
	begun.Wait()
	log.goroutines(log.Logger)
	before, dump, ok := strings.Cut(out.String(), "\n")
	require.True(t, ok)
	require.Contains(t, before, "what every goroutine is doing follows")
	require.Contains(t, dump, "waitForTheEnd")
	lines := strings.Split(strings.TrimSpace(dump), "\n")
	require.Contains(t, lines[len(lines)-1], "end of the goroutines")
}

func waitForTheEnd(begun *sync.WaitGroup, end <-chan struct{}) {
	begun.Done()
	<-end
}

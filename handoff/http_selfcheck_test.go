package handoff

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

func TestSelfCheckPasses(t *testing.T) {
	leak.Check(t)
	for _, h2c := range []bool{false, true} {
		require.NoError(t, checkBoundaries(h2c))
	}
}

func BenchmarkSelfCheck(b *testing.B) {
	for b.Loop() {
		require.NoError(b, checkBoundaries(true))
	}
}

package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hclogger makes Raft write to logger. That a connection has to be dialled anew
// because its certificate ends is planned, and no error: Debug. So is that news of
// a commit came before its entry; who lags is told of by its leader. Raft tells its own story at Info; for
// the server that is Debug, since what matters of it (who leads) is logged here.
func hclogger(logger *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Off, Output: io.Discard})
	l.RegisterSink(sink{logger})
	return l
}

// entryNotThere is a follower's word on news of an entry that it lacks.
const entryNotThere = "failed to get previous log"

type sink struct{ logger *slog.Logger }

func (s sink) Accept(name string, level hclog.Level, msg string, args ...any) {
	at := slog.LevelDebug
	switch level {
	case hclog.Warn:
		at = slog.LevelWarn
	case hclog.Error:
		at = slog.LevelError
	}
	if msg == entryNotThere {
		at = slog.LevelDebug
	}
	for _, a := range args {
		if err, ok := a.(error); ok && errors.Is(err, errDraining) {
			at = slog.LevelDebug
		}
	}
	ctx := context.Background()
	if !s.logger.Enabled(ctx, at) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	s.logger.Log(ctx, at, name+": "+msg, args...)
}

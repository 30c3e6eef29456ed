package containerd

import (
	"io"
	"log"
	"runtime"
)

const goarch = runtime.GOARCH

func nolog() *log.Logger { return log.New(io.Discard, "", 0) }

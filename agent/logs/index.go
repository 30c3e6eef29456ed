package logs

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// An index is a list of records of fixed size, appended. One that was torn by a
// crash, or is damaged, is skipped.
const (
	recordSize = 32
	// indexMax is how large an index becomes before it is thinned.
	indexMax = 4096 * recordSize
	// runsKept bounds the runs of a container that an index knows.
	runsKept = 64

	tempPrefix = ".log-"
)

func indexOf(path string) string { return path + ".idx" }

type kind uint32

const (
	headMark kind = iota + 1 // what is kept begins at offset
	timeMark                 // the log was offset long at time
	runMark                  // run began at offset
)

type record struct {
	kind   kind
	offset int64
	time   time.Time
	run    uint64
}

func (r record) append(b []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(r.kind))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.time.UnixNano()))
	b = binary.LittleEndian.AppendUint64(b, r.run)
	binary.LittleEndian.PutUint32(b[at+4:], crc32.ChecksumIEEE(b[at:]))
	return b
}

func parse(b []byte) (record, bool) {
	if len(b) < recordSize {
		return record{}, false
	}
	var c [recordSize]byte
	copy(c[:], b)
	sum := binary.LittleEndian.Uint32(c[4:])
	binary.LittleEndian.PutUint32(c[4:], 0)
	r := record{
		kind: kind(binary.LittleEndian.Uint32(c[:])), offset: int64(binary.LittleEndian.Uint64(c[8:])),
		time: time.Unix(0, int64(binary.LittleEndian.Uint64(c[16:]))), run: binary.LittleEndian.Uint64(c[24:]),
	}
	return r, crc32.ChecksumIEEE(c[:]) == sum && r.offset >= 0
}

// readIndex returns what is known of the log at path, in order of offset.
func readIndex(path string) []record {
	f, err := os.Open(indexOf(path))
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 2*indexMax))
	if err != nil {
		return nil
	}
	var all []record
	for ; len(data) >= recordSize; data = data[recordSize:] {
		if r, ok := parse(data); ok {
			all = append(all, r)
		}
	}
	return all
}

// indexHead is where what is kept begins, 0 if there is no word of it.
func indexHead(path string) int64 {
	f, err := os.Open(indexOf(path))
	if err != nil {
		return 0
	}
	defer f.Close()
	var b [recordSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0
	}
	if r, ok := parse(b[:]); ok && r.kind == headMark {
		return r.offset
	}
	return 0
}

func lastRecord(path string) (record, bool) {
	f, err := os.Open(indexOf(path))
	if err != nil {
		return record{}, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() < recordSize {
		return record{}, false
	}
	var b [recordSize]byte
	if _, err := f.ReadAt(b[:], (info.Size()/recordSize-1)*recordSize); err != nil {
		return record{}, false
	}
	return parse(b[:])
}

func appendIndex(path string, r record) error {
	f, err := os.OpenFile(indexOf(path), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() >= indexMax {
		f.Close()
		if err := rewriteIndex(path, indexHead(path)); err != nil {
			return err
		}
		return appendIndex(path, r)
	}
	// A torn record is written over.
	_, err = f.WriteAt(r.append(nil), info.Size()/recordSize*recordSize)
	return err
}

// rewriteIndex makes head the beginning of what is kept, and thins the rest:
// what is told of what is gone, and of the older half every other time.
func rewriteIndex(path string, head int64) error {
	var runs, times []record
	for _, r := range readIndex(path) {
		switch r.kind {
		case runMark:
			runs = append(runs, r)
		case timeMark:
			times = append(times, r)
		}
	}
	runs = runs[max(0, len(runs)-runsKept):]
	// The newest of those before head still dates what begins there.
	if i := slices.IndexFunc(times, func(r record) bool { return r.offset >= head }); i > 1 {
		times = times[i-1:]
	}
	if limit := indexMax / recordSize / 2; len(times) > limit {
		old := times[:len(times)-limit/2]
		thin := make([]record, 0, len(times))
		for i := 0; i < len(old); i += 2 {
			thin = append(thin, old[i])
		}
		times = append(thin, times[len(old):]...)
	}
	all := append(runs, times...)
	slices.SortStableFunc(all, func(a, b record) int { return int(min(1, max(-1, a.offset-b.offset))) })
	data := record{kind: headMark, offset: head}.append(nil)
	for _, r := range all {
		data = r.append(data)
	}
	temp, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(data)
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), indexOf(path))
}

// since returns the place before which everything had been written by t.
func since(index []record, t time.Time) int64 {
	for _, r := range slices.Backward(index) {
		if r.kind != headMark && !r.time.After(t) {
			return r.offset
		}
	}
	return 0
}

// runs are the places where runs began.
func runs(index []record) (at []int64) {
	for _, r := range index {
		if r.kind == runMark {
			at = append(at, r.offset)
		}
	}
	return at
}

// dated returns the first mark after at: by its time, everything before it had
// been written.
func dated(index []record, at int64) (record, bool) {
	i, _ := slices.BinarySearchFunc(index, at, func(r record, at int64) int {
		if r.offset > at {
			return 1
		}
		return -1
	})
	for ; i < len(index); i++ {
		if index[i].kind != headMark {
			return index[i], true
		}
	}
	return record{}, false
}

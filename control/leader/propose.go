package leader

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/consensus"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// commandBytes is how large the operations of one command may become: what
// Raft takes less the command's own fields.
const commandBytes = consensus.MaxCommand - 64<<10

// propose makes entries of ops, in their order: one, or as many as their size
// needs. The caller learns each operation's result. After an error an unknown
// number of the first may have been applied; whoever proposes here decides
// anew from the state.
//
// One operation that is too large for any entry is refused by itself: a single
// node's oversized word must not keep others from being heard.
func (l *Leader) propose(ctx context.Context, ops []*redoubtv1.Operation) ([]*redoubtv1.OperationResult, error) {
	results := make([]*redoubtv1.OperationResult, len(ops))
	for _, part := range parts(ops, commandBytes) {
		if part.tooLarge > 0 {
			results[part.from] = &redoubtv1.OperationResult{
				Code:    uint32(codes.ResourceExhausted),
				Message: fmt.Sprintf("%d bytes are more than the %d that one entry takes", part.tooLarge, commandBytes),
			}
			continue
		}
		res, err := l.consensus.Propose(ctx, NewCommand(ops[part.from:part.to]...))
		if err != nil {
			return nil, fmt.Errorf("propose %d operations, from %d of %d: %w", part.to-part.from, part.from+1, len(ops), err)
		}
		copy(results[part.from:part.to], res.Results)
	}
	return results, nil
}

// span is ops[from:to]; tooLarge, if not 0, is the size of its one operation.
type span struct{ from, to, tooLarge int }

// parts cuts ops into runs whose sizes sum up to at most limit.
func parts(ops []*redoubtv1.Operation, limit int) []span {
	var out []span
	from, sum := 0, 0
	flush := func(to int) {
		if to > from {
			out = append(out, span{from: from, to: to})
		}
		from, sum = to, 0
	}
	for i, op := range ops {
		size := proto.Size(op) + 8 // tag and length in the command
		if size > limit {
			flush(i)
			out = append(out, span{from: i, to: i + 1, tooLarge: size})
			from = i + 1
			continue
		}
		if sum+size > limit {
			flush(i)
		}
		sum += size
	}
	flush(len(ops))
	return out
}

package placement

import "redoubt.dev/redoubt/isolation"

func (t *turn) why(c candidate) string { return "" }

func (t *turn) explain(full bool) Explanation {
	return Explanation{Namespace: t.Spec.Namespace, Workload: t.Spec.Name, ScoreVersion: isolation.ScoreVersion}
}

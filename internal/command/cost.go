package command

// What etcd takes the data about a key and a lease to cost beside the bytes that the client gave.
const (
	keyOverhead   = 256
	leaseOverhead = 64
)

// Cost is how many bytes the command may add to the store, estimated as etcd does for its quota: 0 for what cannot make it
// grow. A transaction costs as much as the dearer of its branches, with everything nested in them (E#22139).
func (c *Command) Cost() int64 {
	switch {
	case c.Put != nil:
		return c.Put.cost()
	case c.Txn != nil:
		return c.Txn.cost()
	case c.LeaseGrant != nil:
		return leaseOverhead
	}
	return 0
}

func (p *Put) cost() int64 { return int64(keyOverhead + len(p.Key) + len(p.Value)) }

func (t *Txn) cost() int64 { return max(opsCost(t.Success), opsCost(t.Failure)) }

func opsCost(ops []Op) (sum int64) {
	for i := range ops {
		switch op := &ops[i]; {
		case op.Put != nil:
			sum += op.Put.cost()
		case op.Txn != nil:
			sum += op.Txn.cost()
		}
	}
	return sum
}

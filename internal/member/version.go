package member

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/trivet-kv/trivet/internal/engine"
)

// Downgrade says whether the cluster is being taken to an earlier version.
type Downgrade struct {
	Enabled bool   `json:"enabled"`
	Target  string `json:"target"` // as Version; empty unless enabled
}

// The meta rows of this package.
var (
	rowRemoved   = engine.MetaName("removed/") // and the id, 8 bytes big endian
	rowVersion   = engine.MetaName("clusterversion")
	rowDowngrade = engine.MetaName("downgrade")
)

func removedRow(id uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(nil), rowRemoved...), id)
}

func (t *table) readRemoved(r engine.Reader) error {
	lower, upper := engine.PrefixBounds(rowRemoved)
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		id := it.Key()[len(rowRemoved):]
		if len(id) != 8 {
			return fmt.Errorf("%w: row of a removed member %x", engine.ErrMalformed, it.Key())
		}
		t.removed[binary.BigEndian.Uint64(id)] = struct{}{}
	}
	return it.Err()
}

func (t *table) readVersion(r engine.Reader) error {
	row, _, err := r.Get(rowVersion)
	if err != nil {
		return err
	}
	t.version = string(row)
	row, found, err := r.Get(rowDowngrade)
	if err != nil || !found {
		return err
	}
	if err := json.Unmarshal(row, &t.downgrade); err != nil {
		return fmt.Errorf("row of the downgrade: %w", err)
	}
	return nil
}

// Version is the version of the API that the whole cluster serves, such as 3.7.0; empty while it is not decided.
func (m *Members) Version() string { return m.published.Load().version }

// Downgrade says whether the cluster is being taken to an earlier version.
func (m *Members) Downgrade() Downgrade { return m.published.Load().downgrade }

// SetVersion records the version that the whole cluster serves.
func (m *Members) SetVersion(b *engine.Batch, version string) error {
	if err := b.Set(rowVersion, []byte(version)); err != nil {
		return err
	}
	m.change().version = version
	return nil
}

// SetDowngrade records that a downgrade begins or ends.
func (m *Members) SetDowngrade(b *engine.Batch, d Downgrade) error {
	row, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := b.Set(rowDowngrade, row); err != nil {
		return err
	}
	m.change().downgrade = d
	return nil
}

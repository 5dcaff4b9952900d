package auth

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// The second byte of a row's key says what it is about; the name follows.
const (
	rowRole     = 'r'
	rowSettings = 's'
	rowUser     = 'u'
)

// rowVersion begins the value of each row.
const rowVersion = 1

const (
	flagNoPassword = 1 << iota
)

func appendSettingsKey(dst []byte) []byte { return append(dst, engine.PrefixAuth, rowSettings) }

func appendUserKey(dst []byte, name string) []byte {
	return append(append(dst, engine.PrefixAuth, rowUser), name...)
}

func appendRoleKey(dst []byte, name string) []byte {
	return append(append(dst, engine.PrefixAuth, rowRole), name...)
}

func encodeSettings(dst []byte, s Settings) []byte {
	enabled := byte(0)
	if s.Enabled {
		enabled = 1
	}
	dst = append(dst, rowVersion, enabled)
	dst = binary.AppendUvarint(dst, s.Revision)
	return binary.AppendUvarint(dst, s.Disabled)
}

func encodeUser(dst []byte, u *User) []byte {
	flags := byte(0)
	if u.NoPassword {
		flags |= flagNoPassword
	}
	dst = append(dst, rowVersion, flags)
	dst = binary.AppendUvarint(dst, u.Since)
	dst = appendBytes(dst, u.Hash)
	dst = binary.AppendUvarint(dst, uint64(len(u.Roles)))
	for _, r := range u.Roles {
		dst = appendBytes(dst, []byte(r))
	}
	return dst
}

func encodeRole(dst []byte, r *Role) []byte {
	dst = binary.AppendUvarint(append(dst, rowVersion), uint64(len(r.Permissions)))
	for i := range r.Permissions {
		p := &r.Permissions[i]
		dst = binary.AppendVarint(dst, int64(p.Access))
		dst = appendBytes(appendBytes(dst, p.Key), p.End)
	}
	return dst
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// Row is one row of this package, decoded: one of the pointers is set.
type Row struct {
	Settings *Settings
	User     *User
	Role     *Role
}

// DecodeRow takes a row with the prefix engine.PrefixAuth apart. What it returns does not point into key and value.
func DecodeRow(key, value []byte) (Row, error) {
	malformed := fmt.Errorf("%w: auth row %q", engine.ErrMalformed, key) // the value may be a secret
	if len(key) < 2 || key[0] != engine.PrefixAuth || len(value) == 0 || value[0] != rowVersion {
		return Row{}, malformed
	}
	name := string(key[2:])
	d := decoder{b: value[1:]}
	var row Row
	switch key[1] {
	case rowSettings:
		flags := d.byte()
		row.Settings = &Settings{Enabled: flags == 1, Revision: d.uvarint(), Disabled: d.uvarint()}
		d.failed = d.failed || flags > 1 || name != "" || row.Settings.Revision == 0
	case rowUser:
		flags := d.byte()
		u := &User{Name: name, NoPassword: flags == flagNoPassword, Since: d.uvarint(), Hash: d.bytes()}
		for range d.count() {
			u.Roles = append(u.Roles, string(d.bytes()))
		}
		d.failed = d.failed || flags > flagNoPassword || name == ""
		row.User = u
	case rowRole:
		r := &Role{Name: name}
		for range d.count() {
			access := d.varint()
			r.Permissions = append(r.Permissions, kv.Permission{Access: kv.Access(access), Range: kv.Range{Key: d.bytes(), End: d.bytes()}})
			d.failed = d.failed || access != int64(int32(access))
		}
		d.failed = d.failed || name == ""
		row.Role = r
	default:
		return Row{}, malformed
	}
	if d.failed || len(d.b) > 0 {
		return Row{}, malformed
	}
	return row, nil
}

// decoder reads from the front of b; after a failure it returns zeros.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) fail() { d.b, d.failed = nil, true }

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes returns nil for none.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	v := bytes.Clone(d.b[:n])
	d.b = d.b[n:]
	return v
}

// count reads the length of a list, whose elements take a byte at least.
func (d *decoder) count() int {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return 0
	}
	return int(n)
}

// SetRow writes a row into an engine that nobody has open as users and roles: what was made elsewhere.
func SetRow(b *engine.Batch, r Row) error {
	switch {
	case r.Settings != nil:
		return b.Set(appendSettingsKey(nil), encodeSettings(nil, *r.Settings))
	case r.User != nil:
		return b.Set(appendUserKey(nil, r.User.Name), encodeUser(nil, r.User))
	}
	return b.Set(appendRoleKey(nil, r.Role.Name), encodeRole(nil, r.Role))
}

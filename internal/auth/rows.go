package auth

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/wire"
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
	d := wire.NewReader(bytes.Clone(value[1:]))
	var row Row
	switch key[1] {
	case rowSettings:
		flags := d.Byte()
		row.Settings = &Settings{Enabled: flags == 1, Revision: d.Uvarint(), Disabled: d.Uvarint()}
		if flags > 1 || name != "" || row.Settings.Revision == 0 {
			d.Fail()
		}
	case rowUser:
		flags := d.Byte()
		u := &User{Name: name, NoPassword: flags == flagNoPassword, Since: d.Uvarint(), Hash: d.Bytes()}
		for range d.Count() {
			u.Roles = append(u.Roles, string(d.Bytes()))
		}
		if flags > flagNoPassword || name == "" {
			d.Fail()
		}
		row.User = u
	case rowRole:
		r := &Role{Name: name}
		for range d.Count() {
			access := d.Varint()
			r.Permissions = append(r.Permissions, kv.Permission{Access: kv.Access(access), Range: kv.Range{Key: d.Bytes(), End: d.Bytes()}})
			if access != int64(int32(access)) {
				d.Fail()
			}
		}
		if name == "" {
			d.Fail()
		}
		row.Role = r
	default:
		return Row{}, malformed
	}
	if !d.Whole() {
		return Row{}, malformed
	}
	return row, nil
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

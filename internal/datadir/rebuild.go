package datadir

import (
	"errors"
	"fmt"
	"io/fs"
)

// How log and state are replaced by what another member sent. Between BeginRebuild and EndRebuild neither is to be
// trusted, and whoever opens the directory meanwhile must begin anew:
//
//	1. BeginRebuild, unless it was begun before;
//	2. Replace, with the state that was received;
//	3. SetLogAside, and a new log in the folder Log, which begins behind that state;
//	4. EndRebuild.
//
// Until 1 nothing was changed, so that a member that finds no help is left as it was.

const damagedLogSuffix = ".damaged"

// BeginRebuild records, durably, that log and state are not to be trusted, and why.
func (d *Dir) BeginRebuild(why string) error {
	if d.Identity.Rebuild != "" {
		return nil
	}
	return d.setRebuild(why)
}

// EndRebuild records, durably, that log and state are good.
func (d *Dir) EndRebuild() error { return d.setRebuild("") }

func (d *Dir) setRebuild(why string) error {
	id := *d.Identity
	id.Rebuild = why
	id.HasLog = id.HasLog || why == ""
	if err := d.writeIdentity(id); err != nil {
		return fmt.Errorf("record that the member is rebuilt: %w", err)
	}
	d.Identity = &id
	return nil
}

// SetLogAside gives the log another name, under which it stays until the next start.
func (d *Dir) SetLogAside() error {
	if err := d.removeDamagedLog(); err != nil {
		return err
	}
	if err := d.fs.Rename(d.Log(), d.Log()+damagedLogSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(d.fs, d.fs.PathDir(d.Log()))
}

func (d *Dir) removeDamagedLog() error {
	if err := d.fs.RemoveAll(d.Log() + damagedLogSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the log that was replaced: %w", err)
	}
	return nil
}

// KeepMembers stores who the members are, as the caller encodes them, if that is not stored already.
func (d *Dir) KeepMembers(encoded []byte) error {
	if old, err := d.readFile(membersName); err == nil && string(old) == string(encoded) {
		return nil
	}
	if err := d.writeFile(membersName, encoded); err != nil {
		return fmt.Errorf("write %s: %w", d.join(membersName), err)
	}
	return nil
}

// KeptMembers is what KeepMembers stored last, nil if there is none.
func (d *Dir) KeptMembers() ([]byte, error) {
	b, err := d.readFile(membersName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

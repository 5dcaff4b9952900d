package cli

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"

	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
)

func (t terminal) inspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Show what a stopped member's files hold, as JSON lines",
		Long: `Show what a stopped member's files hold, as JSON lines. Nothing is changed, not a byte. Ids are hexadecimal, as
etcdctl shows them. Bytes that are not text are shown as {"base64": …}.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%q cannot be inspected; write trivet inspect log, state or member, and the data directory", args[0])
			}
			return cmd.Help()
		},
	}
	var o inspectOptions
	add := func(use, short string, f func(*inspection) error) *cobra.Command {
		sub := &cobra.Command{Use: use + " DIR", Short: short, Args: oneDirectory, RunE: func(_ *cobra.Command, args []string) error {
			return t.inspect(args[0], o, f)
		}}
		cmd.AddCommand(sub)
		return sub
	}
	log := add("log", "The records of the raft log, oldest first", (*inspection).log)
	log.Flags().Uint64Var(&o.from, "from", 0, "begin at this index")
	log.Flags().BoolVar(&o.keysOnly, "keys-only", false, "leave values out")
	state := add("state", "The rows of the state, in the order of their keys", (*inspection).state)
	state.Flags().StringVar(&o.rows, "rows", "", "show only rows with one of these prefixes (docs/data.md), for example km")
	state.Flags().BoolVar(&o.keysOnly, "keys-only", false, "leave values out")
	add("member", "Whose directory it is, and how far its log and its state have come", (*inspection).member)
	return cmd
}

func oneDirectory(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("which data directory? Write %s DIR", cmd.CommandPath())
	}
	return nil
}

type inspectOptions struct {
	from     uint64
	rows     string
	keysOnly bool
}

// inspection is one look at one data directory.
type inspection struct {
	inspectOptions
	fs  vfs.FS
	dir *datadir.Dir
	out *bufio.Writer
}

func (t terminal) inspect(path string, o inspectOptions, f func(*inspection) error) error {
	fsys := inspectFS{vfs.Default}
	dir, err := datadir.Look(fsys, path)
	if err != nil {
		return err
	}
	i := &inspection{inspectOptions: o, fs: fsys, dir: dir, out: bufio.NewWriterSize(t.out, 64<<10)}
	// What was found before an error is what one looks for at such a time, so it is shown.
	return errors.Join(f(i), i.out.Flush(), dir.Close())
}

// line writes one object.
func (i *inspection) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = i.out.Write(append(b, '\n'))
	return err
}

// openState opens the current state for reading.
func (i *inspection) openState() (*engine.Engine, error) {
	path, err := i.dir.State()
	if err != nil {
		return nil, err
	}
	e, err := engine.Open(engine.Options{FS: i.fs, Dir: path, ReadOnly: true, Logger: slog.New(slog.DiscardHandler)})
	if errors.Is(err, errInUse) {
		return nil, fmt.Errorf("%w; stop the member first (its log can be inspected while it runs)", err)
	}
	return e, err
}

// errInUse says that a process serves what is to be inspected.
var errInUse = errors.New("another process has it open")

// inspectFS is the file system, with locks that change nothing on disk, so that a directory that cannot be written, or a
// copy without lock files, can be looked at too.
type inspectFS struct{ vfs.FS }

// Lock implements vfs.FS.
func (f inspectFS) Lock(name string) (io.Closer, error) { return lockForReading(name) }

// text is bytes of a user: text if they are, and base64 otherwise.
type text []byte

// MarshalJSON implements json.Marshaler.
func (b text) MarshalJSON() ([]byte, error) {
	if utf8.Valid(b) {
		return json.Marshal(string(b))
	}
	return json.Marshal(map[string]string{"base64": base64.StdEncoding.EncodeToString(b)})
}

// id is the id of a member, a cluster or a lease: hexadecimal, as etcdctl shows it.
type id uint64

// MarshalJSON implements json.Marshaler.
func (n id) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, strconv.FormatUint(uint64(n), 16)), nil
}

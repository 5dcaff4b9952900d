package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dustin/go-humanize"
	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/tw"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/version"

	"github.com/trivet-kv/trivet/internal/backup"
	"github.com/trivet-kv/trivet/internal/config"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/replica"
	"github.com/trivet-kv/trivet/internal/rpc"
)

// defaultBump is by how much a restore raises the revision: more than any store wrote since its snapshot was taken.
const defaultBump = 1_000_000_000

// utlOptions are the flags of all commands of utl.
type utlOptions struct {
	timeout time.Duration
	format  string
}

func (t terminal) utlCommand(name string) *cobra.Command {
	o := &utlOptions{}
	cmd := &cobra.Command{
		Use:   name,
		Short: "Snapshots and data directories of stopped members, as etcdutl; and data directories of etcd",
		Args:  cobra.ArbitraryArgs,
		RunE:  refuseArgs,
	}
	cmd.PersistentFlags().DurationVar(&o.timeout, "timeout", 10*time.Second, "time to wait for a data directory that a process serves, 0 to wait without end")
	cmd.PersistentFlags().StringVarP(&o.format, "write-out", "w", "simple", "output format: fields, json, simple or table")
	snapshot := &cobra.Command{Use: "snapshot", Short: "Look at a snapshot, or make data directories of it", Args: cobra.ArbitraryArgs, RunE: refuseArgs}
	snapshot.AddCommand(t.utlStatus(o), t.utlRestore())
	cmd.AddCommand(snapshot, t.utlHashKV(o), t.utlMigrate(o), t.utlDefrag(), &cobra.Command{
		Use: "version", Short: "Print the version of etcd whose files and flags are understood", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			fmt.Fprintf(t.out, "etcdutl version: %s\nAPI version: %s\n", version.Version, version.APIVersion)
		},
	})
	return cmd
}

func refuseArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%q is not a command; %s --help lists them", args[0], cmd.CommandPath())
	}
	return cmd.Help()
}

// etcdutl is the program under etcdutl's name.
func (t terminal) etcdutl(args []string) error {
	root := t.utlCommand("etcdutl")
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetIn(t.in)
	root.SetOut(t.out)
	root.SetErr(t.err)
	root.SetFlagErrorFunc(flagError)
	root.SetArgs(args)
	return root.Execute()
}

func oneFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("which snapshot? Write %s FILE", cmd.CommandPath())
	}
	return nil
}

// show prints one row in the format asked for: names are those of the format fields, heads those of the table.
func (t terminal) show(o *utlOptions, v any, names, heads, fields, cells []string) error {
	switch o.format {
	case "simple":
		fmt.Fprintln(t.out, strings.Join(cells, ", "))
	case "fields":
		for i, name := range names {
			fmt.Fprintf(t.out, "%q : %s\n", name, fields[i])
		}
	case "json":
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		fmt.Fprintln(t.out, string(b))
	case "table":
		table := tablewriter.NewTable(t.out, tablewriter.WithConfig(tablewriter.NewConfigBuilder().WithRowAlignment(tw.AlignRight).Build()))
		table.Header(heads)
		return errors.Join(table.Append(cells), table.Render())
	case "protobuf":
		return fmt.Errorf("--write-out=protobuf: this has no protobuf form; choose fields, json, simple or table")
	default:
		return fmt.Errorf("--write-out=%s: unknown format; choose fields, json, simple or table", o.format)
	}
	return nil
}

func (t terminal) utlStatus(o *utlOptions) *cobra.Command {
	return &cobra.Command{
		Use: "status FILE", Short: "What a snapshot holds; a hash at its end is checked", Args: oneFile,
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := backup.ReadStatus(args[0])
			if err != nil {
				return err
			}
			return t.show(o, s, []string{"Hash", "Revision", "Keys", "Size", "Version"},
				[]string{"hash", "revision", "total keys", "total size", "version"},
				[]string{fmt.Sprint(s.Hash), fmt.Sprint(s.Revision), fmt.Sprint(s.TotalKey), fmt.Sprint(s.TotalSize), s.Version},
				[]string{fmt.Sprintf("%x", s.Hash), fmt.Sprint(s.Revision), fmt.Sprint(s.TotalKey), humanize.Bytes(uint64(s.TotalSize)), s.Version})
		},
	}
}

func (t terminal) utlHashKV(o *utlOptions) *cobra.Command {
	var rev int64
	cmd := &cobra.Command{
		Use: "hashkv FILE", Short: "The hash of a snapshot's history, as HashKV of a member gives it", Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := backup.ReadHashKV(context.Background(), args[0], rev)
			if err != nil {
				return err
			}
			cells := []string{fmt.Sprint(h.Hash), fmt.Sprint(h.HashRevision), fmt.Sprint(h.CompactRevision)}
			return t.show(o, h, []string{"Hash", "Hash revision", "Compact revision"},
				[]string{"hash", "hash revision", "compact revision"}, cells, cells)
		},
	}
	cmd.Flags().Int64Var(&rev, "rev", 0, "the revision up to which history is hashed; 0: the newest")
	return cmd
}

func (t terminal) utlDefrag() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "defrag --data-dir DIR", Short: "Nothing: a member gives space back as it works", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return errors.New("--data-dir is needed: the data directory of a member")
			}
			if _, err := datadir.Look(vfs.Default, dir); err != nil {
				return err
			}
			fmt.Fprintln(t.err, "there is nothing to defragment: the engine gives space back as it works")
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "the data directory of a member")
	return cmd
}

// placeFlags are the flags that say which member a data directory is made for.
type placeFlags struct {
	name, cluster, token, peers string
}

func (p *placeFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.name, "name", "default", "the member's name")
	cmd.Flags().StringVar(&p.cluster, "initial-cluster", "", "the members of the new cluster, as NAME=http://HOST:PORT,… (default \"NAME=http://localhost:2380\")")
	cmd.Flags().StringVar(&p.token, "initial-cluster-token", "etcd-cluster", "the token of the new cluster")
	cmd.Flags().StringVar(&p.peers, "initial-advertise-peer-urls", "http://localhost:2380", "the member's own URLs of these")
}

// place works out what they say.
func (p *placeFlags) place(dataDir, walDir string) (backup.Place, error) {
	cluster := p.cluster
	if cluster == "" {
		cluster = p.name + "=http://localhost:2380"
	}
	founders, err := config.ParseInitialCluster(cluster)
	if err != nil {
		return backup.Place{}, fmt.Errorf("--initial-cluster=%s: %w", cluster, err)
	}
	if dataDir == "" {
		dataDir = p.name + ".etcd"
	}
	out := backup.Place{DataDir: dataDir, LogDir: walDir}
	owner := map[string]string{}
	var ids []uint64
	found := false
	for _, f := range founders {
		m := member.Member{ID: member.ID(f.PeerURLs, p.token), Name: f.Name, PeerURLs: f.PeerURLs}
		for _, u := range f.PeerURLs {
			if owner[u] != "" {
				return out, fmt.Errorf("--initial-cluster=%s: %q is there twice, for %q and %q; give each member URLs of its own", cluster, u, owner[u], f.Name)
			}
			owner[u] = f.Name
		}
		out.Members, ids = append(out.Members, m), append(ids, m.ID)
		if f.Name != p.name {
			continue
		}
		found = true
		own := strings.Split(p.peers, ",")
		for i := range own {
			own[i] = strings.TrimSpace(own[i])
		}
		slices.Sort(own)
		if !slices.Equal(slices.Compact(own), f.PeerURLs) {
			return out, fmt.Errorf("--initial-advertise-peer-urls=%s: --initial-cluster has %s for %q; give both the same URLs",
				p.peers, strings.Join(f.PeerURLs, ","), p.name)
		}
		out.Identity = datadir.Identity{MemberID: m.ID, Name: f.Name, Token: p.token, PeerURLs: f.PeerURLs}
	}
	if !found {
		return out, fmt.Errorf("--name=%s: the name is not in --initial-cluster=%s; use one of its names, or add this member to it", p.name, cluster)
	}
	out.Identity.ClusterID = member.ClusterID(ids)
	slices.Sort(ids)
	out.ConfState = replica.EncodeConfState(ids, nil)
	return out, nil
}

func (t terminal) utlRestore() *cobra.Command {
	var flags placeFlags
	var dataDir, walDir string
	var skip, mark bool
	var mmap, bump uint64
	cmd := &cobra.Command{
		Use:   "restore FILE --data-dir DIR",
		Short: "Make the data directory of a member of a new cluster out of a snapshot",
		Long: `Make the data directory of a member of a new cluster out of a snapshot of Trivet or of etcd 3.4 to 3.7: keys with their
history, leases, users and roles. Run it once for each member, with the same file and the same --initial-cluster, on the
machine where the member is to run; then start them with the same names and URLs.

Unless --bump-revision=0 is given, the revision is raised and all history is marked as compacted: watchers that saw
revisions which the snapshot does not have are told so, instead of being shown other changes under the same revisions.`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("mark-compacted") && mark != (bump > 0) {
				return fmt.Errorf("--mark-compacted=%t with --bump-revision=%d: history is marked as compacted exactly if the revision is raised", mark, bump)
			}
			if bump > 1<<62 {
				return fmt.Errorf("--bump-revision=%d: at most %d", bump, uint64(1<<62))
			}
			if cmd.Flags().Changed("initial-memory-map-size") {
				fmt.Fprintln(t.err, "--initial-memory-map-size has no meaning here: files are not mapped")
			}
			place, err := flags.place(dataDir, walDir)
			if err != nil {
				return err
			}
			f, err := backup.Open(args[0], skip)
			if err != nil {
				return err
			}
			im, err := backup.Restore(context.Background(), f, place, int64(bump))
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
			t.tellImported("restored", im, place)
			return nil
		},
	}
	flags.add(cmd)
	f := cmd.Flags()
	f.StringVar(&dataDir, "data-dir", "", "the data directory to make (default \"NAME.etcd\")")
	f.StringVar(&walDir, "wal-dir", "", "a directory of its own for the log; the server must be given the same")
	f.BoolVar(&skip, "skip-hash-check", false, "do not check the hash at the end of the file; needed for a database copied from a data directory of etcd")
	f.Uint64Var(&mmap, "initial-memory-map-size", 10<<30, "no meaning here")
	f.Uint64Var(&bump, "bump-revision", defaultBump, "by how much the revision is raised; 0: not at all")
	f.BoolVar(&mark, "mark-compacted", true, "mark all history as compacted; goes with --bump-revision")
	return cmd
}

func (t terminal) tellImported(what string, im backup.Imported, p backup.Place) {
	fmt.Fprintf(t.err, "%s %d keys (%d changes), %d leases, %d users and %d roles at revision %d into %s, for the member %s (%x) of the cluster %x\n",
		what, im.Keys, im.Changes, im.Leases, im.Users, im.Roles, im.Revision, p.DataDir, p.Identity.Name, p.Identity.MemberID, p.Identity.ClusterID)
	if im.Bumped > 0 {
		fmt.Fprintf(t.err, "the revision was raised by %d and history is marked as compacted, so that no watcher sees a revision twice\n", im.Bumped)
	}
	if im.Auth {
		fmt.Fprintln(t.err, "authentication is on, as it was")
	}
}

func (t terminal) utlMigrate(o *utlOptions) *cobra.Command {
	var flags placeFlags
	var from, wal, to, toWAL, target string
	var force bool
	cmd := &cobra.Command{
		Use:   "migrate --data-dir ETCD_DIR --output-dir NEW_DIR",
		Short: "Make the data directory of a member out of that of a stopped etcd",
		Long: `Make the data directory of a member of a new cluster out of the data directory of a stopped etcd 3.4 to 3.7: keys with
their history and revisions, leases, users and roles, and what stands in its log only. Nothing in it is changed.

For a cluster of several members stop the writers first, stop all members, take the directory of the one whose log goes
farthest, and run this for each new member from copies of that one directory (docs/operations.md).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case target != "" || force:
				return errors.New("--target-version and --force change the format of etcd's own files, which is the business of etcd's etcdutl; here migrate reads them into a data directory of Trivet")
			case from == "" || to == "":
				return errors.New("--data-dir, the directory of the stopped etcd, and --output-dir, the one to make, are needed")
			}
			place, err := flags.place(to, toWAL)
			if err != nil {
				return err
			}
			m, err := backup.Migrate(context.Background(), backup.EtcdDir{Path: from, WAL: wal, Wait: o.timeout, Translate: rpc.Logged}, place)
			if err != nil {
				return err
			}
			t.tellImported("migrated", m.Imported, place)
			fmt.Fprintf(t.err, "etcd's state was at entry %d; %d entries of its log were applied, up to %d of term %d\n", m.StateIndex, m.Entries, m.LastIndex, m.LastTerm)
			if m.Uncommitted > 0 {
				fmt.Fprintf(t.err, "the last %d of them this member did not know to be committed; a cluster that elects it commits them\n", m.Uncommitted)
			}
			return nil
		},
	}
	flags.add(cmd)
	f := cmd.Flags()
	f.StringVar(&from, "data-dir", "", "the data directory of the stopped etcd")
	f.StringVar(&wal, "etcd-wal-dir", "", "its WAL directory, if it has one of its own")
	f.StringVar(&to, "output-dir", "", "the data directory to make")
	f.StringVar(&toWAL, "wal-dir", "", "a directory of its own for the log; the server must be given the same")
	f.StringVar(&target, "target-version", "", "refused: of etcd's own files")
	f.BoolVar(&force, "force", false, "refused: of etcd's own files")
	return cmd
}

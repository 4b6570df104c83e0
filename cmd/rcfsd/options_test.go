package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		list string
		want proxy.Spec
	}{
		{"cpu", proxy.Spec{Subsystems: []string{"cpu"}}},
		{"cpu,uts", proxy.Spec{Subsystems: []string{"cpu", "uts"}}},
		{"cpu,uts,cpu", proxy.Spec{Subsystems: []string{"cpu", "uts"}}},
		{"", proxy.Spec{All: true}},
		{"rw,defaults", proxy.Spec{All: true}},
		{"all", proxy.Spec{All: true}},
		{"all,name=x", proxy.Spec{All: true, Name: "x"}},
		{"name=x", proxy.Spec{Name: "x"}},
		{"none,name=X", proxy.Spec{None: true, Name: "X"}},
		{"name=X,none", proxy.Spec{None: true, Name: "X"}},
		{"cpu,name=a.b-c_9", proxy.Spec{Subsystems: []string{"cpu"}, Name: "a.b-c_9"}},
		{"cpu,base=rcfs-test", proxy.Spec{Subsystems: []string{"cpu"}, Base: "rcfs-test"}},
		{"cpu,base=a.slice/b_c", proxy.Spec{Subsystems: []string{"cpu"}, Base: "a.slice/b_c"}},
		{"cpu,base=..a", proxy.Spec{Subsystems: []string{"cpu"}, Base: "..a"}},
		{`cpu,base=user@1000.service/dev-a\x2db.device`, proxy.Spec{Subsystems: []string{"cpu"}, Base: `user@1000.service/dev-a\x2db.device`}},
		// What mount(8) passes itself.
		{"rw,nodev,nosuid,noexec,relatime,nofail,_netdev,user_id=0,group_id=0,allow_other,default_permissions,max_read=131072,cpu",
			proxy.Spec{Subsystems: []string{"cpu"}}},
		{"rw,fd=3,rootmode=40000,uid=0,user=root,comment=x,x-systemd.automount,X-mount.mkdir,noauto,cpu", proxy.Spec{Subsystems: []string{"cpu"}}},
		{",cpu,,uts,", proxy.Spec{Subsystems: []string{"cpu", "uts"}}},
	} {
		o, err := parseOptions(c.list)
		if assert.NoError(t, err, c.list) {
			assert.Equal(t, c.want, o.spec, c.list)
			assert.EqualValues(t, alwaysFlags, o.flags&alwaysFlags, c.list)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	const long = "name=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for _, c := range []struct {
		list  string
		names string // the word that the error names
		errno unix.Errno
	}{
		{"bogus", "bogus", unix.EINVAL},
		{"cpu,bogus", "bogus", unix.EINVAL},
		{"cpu=1", "cpu=1", unix.EINVAL},
		{" cpu", " cpu", unix.EINVAL},
		{"CPU", "CPU", unix.EINVAL},
		{"name=", "name=", unix.EINVAL},
		{"name", "name", unix.EINVAL},
		{"name=a/b", "name=a/b", unix.EINVAL},
		{"name=a b", "name=a b", unix.EINVAL},
		{`name="a,b"`, `name="a`, unix.EINVAL},
		{long, long, unix.EINVAL},
		{"name=x,name=y", "name=y", unix.EINVAL},
		{"name=x,name=x", "name=x", unix.EINVAL},
		{"none,cpu,name=x", "none", unix.EINVAL},
		{"cpu,none,name=x", "none", unix.EINVAL},
		{"all,cpu", "cpu", unix.EINVAL},
		{"all,none,name=x", "all", unix.EINVAL},
		{"none", "none", unix.EINVAL},
		{"base=", "base=", unix.EINVAL},
		{"cpu,base=/a", "base=/a", unix.EINVAL},
		{"cpu,base=a/../b", "base=a/../b", unix.EINVAL},
		{"cpu,base=..", "base=..", unix.EINVAL},
		{"cpu,base=.", "base=.", unix.EINVAL},
		{"cpu,base=a//b", "base=a//b", unix.EINVAL},
		{"cpu,base=a/", "base=a/", unix.EINVAL},
		{"cpu,base=a b", "base=a b", unix.EINVAL},
		{"cpu,base=.rcfs", "base=.rcfs", unix.EINVAL},
		{"cpu,base=a,base=b", "base=b", unix.EINVAL},
		{"cpu,release_agent=true", "release_agent=true", unix.EINVAL},
		{"cpu,release_agent=", "release_agent=", unix.EINVAL},
		{"cpu,release_agent=/a,release_agent=/a", "release_agent=/a", unix.EINVAL},
		{"user_id", "user_id", unix.EINVAL},
	} {
		_, err := parseOptions(c.list)
		var refused *optionError
		require.ErrorAs(t, err, &refused, c.list)
		assert.Equal(t, c.names, refused.word, c.list)
		assert.ErrorIs(t, err, c.errno, c.list)
		assert.NotContains(t, err.Error(), "\n")
	}
}

func TestOptionFlags(t *testing.T) {
	for list, want := range map[string]uintptr{
		"":                      0,
		"ro":                    unix.MS_RDONLY,
		"ro,rw":                 0,
		"rw,ro":                 unix.MS_RDONLY,
		"noatime,sync":          unix.MS_NOATIME | unix.MS_SYNCHRONOUS,
		"suid,dev,exec":         0, // of no use in a tree of control files
		"nosymfollow,symfollow": 0,
	} {
		o, err := parseOptions(list)
		require.NoError(t, err, list)
		assert.Equal(t, want|alwaysFlags, o.flags, list)
	}
}

func FuzzOptions(f *testing.F) {
	f.Fuzz(func(t *testing.T, list string) {
		o, err := parseOptions(list)
		if err != nil {
			var refused *optionError
			if !assert.ErrorAs(t, err, &refused) || !strings.Contains(list, refused.word) {
				t.Errorf("%q: the error names %q", list, refused.word)
			}
			return
		}
		s := o.spec
		if s.None && s.All || (s.None || s.All) && len(s.Subsystems) > 0 || s.None && s.Name == "" {
			t.Errorf("%q: %+v", list, s)
		}
		if err := checkSpec(&s); err != nil {
			t.Errorf("%q: %v", list, err)
		}
		for _, name := range s.Subsystems {
			if !proxy.Known(name) {
				t.Errorf("%q: subsystem %q", list, name)
			}
		}
	})
}

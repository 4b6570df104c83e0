# What the scripts share. Sourced, not run.

# need COMMAND PACKAGE installs a Debian package unless its command is there.
need() {
	command -v "$1" >/dev/null && return
	[ -n "${apt_updated:-}" ] || { apt-get update -qq; apt_updated=1; }
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

#!/bin/sh
# Makes a role in etcd, by etcdctl, which finds the store and who asks it in its own variables:
# ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY, ETCDCTL_USER.
#
#   roles.sh operator            kilo-operator: write all that belongs to the mesh
#   roles.sh agent NODE          kilo-agent-NODE: read the mesh, write that node's report
#   roles.sh registering NODE    the same, and declare that node, and take pod subnets from pools
#
# May be run again. KILO_PREFIX is what all keys begin with, /kilo unless told.
set -eu

prefix=${KILO_PREFIX:-/kilo}
prefix=${prefix%/} # as kg reads --etcd-prefix
export ETCDCTL_API=3

make_role() {
	etcdctl role get "$1" >/dev/null 2>&1 || etcdctl role add "$1"
}

may_use_all_below() {
	etcdctl role grant-permission --prefix=true "$1" "$2" "$3"
}

may_write() {
	etcdctl role grant-permission "$1" readwrite "$2"
}

make_agent() {
	make_role "kilo-agent-$1"
	may_use_all_below "kilo-agent-$1" read "$prefix/"
	may_write "kilo-agent-$1" "$prefix/reports/$1"
}

case "${1:-} $#" in
"operator 1")
	make_role kilo-operator
	may_use_all_below kilo-operator readwrite "$prefix/"
	;;
"agent 2")
	make_agent "$2"
	;;
"registering 2")
	make_agent "$2"
	may_write "kilo-agent-$2" "$prefix/nodes/$2"
	# Whichever subnet is free may become the node's, so it is all of them or none.
	may_use_all_below "kilo-agent-$2" readwrite "$prefix/subnets/"
	;;
*)
	echo "usage: roles.sh operator | agent NODE | registering NODE" >&2
	exit 2
	;;
esac

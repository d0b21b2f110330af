#!/usr/bin/env bash
# link.sh LIBCLOVIS_FFI.A OUT_FOLDER: links libclovis.so.1 with versioned symbols and nothing else exported, and its other names.
#
# The symbols are those that the headers declare: this script reads them there. rustc's own cdylib is not used: with rust-lld a version script
# leaves every symbol unversioned and exports what dependencies export, without a word; with GNU ld it is an error (two anonymous version
# tags). A static library linked by the C compiler does what the script says. The later names m0_X are aliases of m0_clovis_X.
set -euo pipefail
archive=$1
out=$2
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
mkdir -p -- "$out"

# Names of functions and data that the headers declare and do not define: `name(` at the end of a prototype, and M0_EXTERN data.
symbols=$("$here/symbols.sh")
map="$out/clovis.map"
undefined=()
aliases=()
{
    printf 'CLOVIS_1.0 {\n    global:\n'
    for symbol in $symbols; do
        printf '        %s;\n' "$symbol"
    done
    printf '    local:\n        *;\n};\n'
} > "$map"
for symbol in $symbols; do
    old=$("$here/symbols.sh" --old-name "$symbol")
    if [ "$old" = "$symbol" ]; then
        undefined+=("-Wl,-u,$symbol")
    else
        undefined+=("-Wl,-u,$old")
        aliases+=("-Wl,--defsym,$symbol=$old")
    fi
done

"${CC:-cc}" -shared -fuse-ld=bfd -o "$out/libclovis.so.1" "${undefined[@]}" "${aliases[@]}" "$archive" \
    "-Wl,--version-script=$map" -Wl,-soname,libclovis.so.1 -Wl,--gc-sections -Wl,-z,defs -Wl,-z,now -Wl,-z,relro \
    ${CLOVIS_LINK_FLAGS:-} -lgcc_s -lpthread -ldl -lm -lc
for name in libclovis.so libmero.so libmotr.so; do
    ln -sfn libclovis.so.1 "$out/$name"
done

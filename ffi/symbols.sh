#!/usr/bin/env bash
# symbols.sh: prints the symbols that the headers declare, one a line, sorted.
# symbols.sh --old-name SYMBOL: prints the symbol that SYMBOL is another name of, or itself.
#
# It lets the C compiler read the headers, so that macros and inline functions are what they are. A declared function or object that
# some header defines as `static inline` is none of ours; so is whatever the system's headers declare.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# Later names, made by motr/client.h over the older ones. Two of them are functions of their own.
if [ "${1-}" = --old-name ]; then
    case $2 in
    m0_obj_op) echo m0_obj_op ;;
    m0_obj_write_lock_get | m0_obj_read_lock_get) echo m0_clovis_obj_lock_get ;;
    m0_obj_write_lock_get_sync | m0_obj_read_lock_get_sync) echo m0_clovis_obj_lock_get_sync ;;
    m0_client_init) echo m0_clovis_init ;;
    m0_client_fini) echo m0_clovis_fini ;;
    m0_client_layout_*) echo "m0_clovis_layout_${2#m0_client_layout_}" ;;
    *)
        # An alias if motr/client.h has it and clovis.h has it under the older name.
        old=m0_clovis_${2#m0_}
        if grep -q "[ *]$2(" "$here/include/motr/client.h" 2>/dev/null &&
            grep -q "[ *]$old(" "$here/include/clovis/clovis.h"; then
            echo "$old"
        else
            echo "$2"
        fi
        ;;
    esac
    exit 0
fi

{
    # Each header alone, preprocessed; lines of our headers only. A prototype may go over several lines: join up to the semicolon.
    find "$here/include" -name '*.h' | LC_ALL=C sort | while read -r header; do
        printf '#include "%s"\n' "${header#"$here/include/"}" | "${CC:-cc}" -std=gnu17 -E -I"$here/include" -x c - |
            awk -v root="$here/include/" '
                /^# [0-9]+ "/ { split($0, part, "\""); ours = index(part[2], root) == 1; next }
                ours { print }'
    done
} | tr '\n' ' ' | sed -e 's/__attribute__ *(( *[a-z_]* *\(([^)]*)\)\{0,1\}\( *, *[a-z_]*\)* *))//g' | awk '
    # Depth of braces tells declarations at file scope from bodies; a statement that held a body defines, and is left out.
    {
        n = length($0); depth = 0; statement = ""; had_body = 0
        for (i = 1; i <= n; i++) {
            c = substr($0, i, 1)
            if (c == "{") { depth++; had_body = 1; continue }
            if (c == "}") {
                depth--
                # The end of an inline function: no semicolon follows.
                if (depth == 0 && statement ~ /\) *$/) { statement = ""; had_body = 0 }
                continue
            }
            if (depth > 0) continue
            if (c == ";") { if (!had_body) print statement; statement = ""; had_body = 0; continue }
            statement = statement c
        }
    }' | sed -e 's/[[:space:]]\{1,\}/ /g' -e 's/^ //' | awk '
    /^typedef/ || /^static/ { next }
    /\(/ { sub(/ *\(.*/, ""); sub(/.*[ *]/, ""); if ($0 ~ /^(m0_|M0_)/) print; next }
    /^extern const/ { sub(/.*[ *]/, ""); if ($0 ~ /^(m0_|M0_)/) print }' | LC_ALL=C sort -u

"""What makes a shell ask ``kgctl`` itself, at each Tab, how its command line may go on.

``kgctl __complete`` answers; see ``kilo.kgctl.completing`` for what it is told and says.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Bash breaks words at "=", and takes for the current word what is behind the last one; that of
# macOS, 3.2, has neither mapfile nor compopt.
BASH = """\
_kgctl() {
  local glued=() word last="" line text
  for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
    if [[ ($word == "=" || $last == "=") && ${#glued[@]} -gt 0 ]]; then
      glued[${#glued[@]}-1]+=$word
    else
      glued+=("$word")
    fi
    last=$word
  done
  local whole=${glued[${#glued[@]}-1]} current=${COMP_WORDS[COMP_CWORD]} skipped=""
  [[ $current == "=" ]] && current=""
  [[ $whole == -*=* && $whole != "$current" ]] && skipped=${whole%%=*}=
  COMPREPLY=()
  while IFS= read -r line; do
    if [[ $line == ":files" ]]; then
      compopt -o default 2>/dev/null || COMPREPLY+=($(compgen -f -- "$current"))
    else
      text=${line%%$'\\t'*}
      COMPREPLY+=("${text#"$skipped"}")
    fi
  done < <(kgctl __complete "${glued[@]}" 2>/dev/null </dev/null)
}
complete -F _kgctl kgctl
"""
ZSH = """\
#compdef kgctl
_kgctl() {
  local -a found
  local line text
  for line in "${(@f)$(kgctl __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null </dev/null)}"; do
    text=${line%%$'\\t'*}
    if [[ $line == ":files" ]]; then
      [[ ${words[CURRENT]} == -*=* ]] && compset -P 1 '*='
      _files
    elif [[ $text == $line ]]; then
      [[ -n $line ]] && found+=("${text//:/\\\\:}")
    else
      found+=("${text//:/\\\\:}:${line#*$'\\t'}")
    fi
  done
  (( $#found )) && _describe 'kgctl' found
}
if [[ ${funcstack[1]} == _kgctl ]]; then _kgctl "$@"; else compdef _kgctl kgctl; fi
"""
FISH = """\
function __kgctl_complete
  set -l words (commandline -opc) (commandline -ct)
  set -l current $words[-1]
  for line in (kgctl __complete $words[2..-1] 2>/dev/null </dev/null)
    if test "$line" = ":files"
      set -l prefix (string match -r -- '^-[^=]*=' "$current")
      for path in (__fish_complete_path (string replace -r -- '^-[^=]*=' '' "$current"))
        echo "$prefix$path"
      end
    else
      echo $line
    end
  end
end
complete -c kgctl -f -a '(__kgctl_complete)'
"""
SHELLS: Mapping[str, str] = MappingProxyType({"bash": BASH, "zsh": ZSH, "fish": FISH})
"""Shell -> its script."""

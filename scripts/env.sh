# Sourced by the scripts: go to the checkout, enter a virtual environment, install the package.
# With an environment active that one is used, else .venv, made if absent.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  # shellcheck disable=SC1091
  . .venv/bin/activate
fi
# install EXTRA: the package from this checkout with an extra, if that is not there already
install() {
  local want stamp
  want="$PWD $(cksum <setup.py)"
  for stamp in "$VIRTUAL_ENV/.clsp-plugin$1" "$VIRTUAL_ENV/.clsp-plugin[test]"; do
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
  done
  echo "Installing clsp-plugin$1 into $VIRTUAL_ENV"
  python -m pip install -qq --disable-pip-version-check -e ".$1"
  echo "$want" >"$VIRTUAL_ENV/.clsp-plugin$1"
}

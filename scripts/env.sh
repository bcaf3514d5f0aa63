# Sourced by the scripts: go to the checkout, enter a virtual environment, install the package.
# With an environment active that one is used, else .venv, made if absent.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  # shellcheck disable=SC1091
  . .venv/bin/activate
fi
# install EXTRA: the package from this checkout, if it is not that already
install() {
  local want="$PWD clsp-plugin$1" stamp="$VIRTUAL_ENV/.clsp-plugin$1"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want $(cksum <setup.py)" ]; then
    echo "Installing clsp-plugin$1 into $VIRTUAL_ENV"
    python -m pip install --quiet --disable-pip-version-check -e ".$1"
    echo "$want $(cksum <setup.py)" >"$stamp"
  fi
}

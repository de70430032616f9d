# Installs a wheel into a virtual environment with pip, without an index.
set -e
mkdir -p /root/pip && cd /root/pip
python3 - <<'END'
import zipfile
info = 'greet-1.0.dist-info/'
files = {
    'greet/__init__.py': 'def main():\n    print("greetings")\n',
    info + 'METADATA': 'Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n',
    info + 'WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
    info + 'entry_points.txt': '[console_scripts]\ngreet = greet:main\n',
}
with zipfile.ZipFile('greet-1.0-py3-none-any.whl', 'w') as wheel:
    for name, text in files.items():
        wheel.writestr(name, text)
    wheel.writestr(info + 'RECORD', ''.join(f'{name},,\n' for name in [*files, info + 'RECORD']))
END
# Installing pip into the environment takes minutes on a software CPU.
python3 -m venv --without-pip environment
pip() { command pip --python environment/bin/python --quiet --disable-pip-version-check "$@"; }
pip install --no-index ./greet-1.0-py3-none-any.whl
echo "said=$(environment/bin/greet)"
echo "version=$(environment/bin/python -c 'from importlib.metadata import version; print(version("greet"))')"
pip uninstall --yes greet
echo "left=$(find environment -name '*greet*')"

"""What `from openworld_forget import ...` offers: a dozen names, loaded when they are used, and known to the keys of what scripts and templates make."""
import ast, importlib, json, subprocess, sys

import pytest

import openworld_forget as owf
from openworld_forget import source
from openworld_forget.options import CHECKS
from openworld_forget.source import imports, module_of, modules, reached, source_key

from conftest import ROOT

INIT = ROOT/'openworld_forget/__init__.py'
HOME = {name: f'openworld_forget.{module}' for module, names in owf.NAMES.items() for name in names.split()}

def in_fresh_python(code):
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert r.returncode == 0, r.stderr[-2000:]
    return json.loads(r.stdout)

# ---------------------------------------------------------------- at run time
@pytest.mark.parametrize('name', HOME)
def test_a_name_is_what_its_module_calls_so(name):
    assert getattr(owf, name) is getattr(importlib.import_module(HOME[name]), name)

def test_importing_the_package_imports_no_library():
    "What torch costs is paid by the first name that needs it."
    code = "import json, sys; before = set(sys.modules); import openworld_forget; print(json.dumps(sorted(set(sys.modules) - before)))"
    new = in_fresh_python(code)
    assert 'openworld_forget' in new and not [m for m in new if m.split('.')[0] not in {'openworld_forget', *sys.stdlib_module_names}]
    assert [m for m in new if m.startswith('openworld_forget.')] == []

def test_a_name_loads_its_module_and_no_other_wing():
    loaded = in_fresh_python("import json, sys; from openworld_forget import cdi; print(json.dumps(list(sys.modules)))")
    loaded = [m for m in loaded if m.startswith('openworld_forget.')]
    assert 'openworld_forget.metrics.color' in loaded and not [m for m in loaded if '.training' in m or '.study' in m]

def test_what_is_not_offered_is_an_attribute_error_and_dir_shows_the_names():
    with pytest.raises(AttributeError, match='no_such_name'): owf.no_such_name
    assert set(HOME) <= set(dir(owf)) and set(owf.__all__) == set(HOME) and not hasattr(owf, 'worldz')

# ---------------------------------------------------------------- for editors
def test_editors_are_told_the_same_names():
    "The imports that only type checkers read are those of the table."
    block = next(n for n in ast.parse(INIT.read_text(encoding='utf-8')).body if isinstance(n, ast.If))
    assert {a.name: f'openworld_forget.{n.module}' for n in block.body for a in n.names} == HOME

def test_no_name_hides_a_module(): assert not {f'openworld_forget.{n}' for n in HOME} & set(modules())

# ---------------------------------------------------------------- for keys
@pytest.mark.parametrize('line', ['from openworld_forget import load_world', 'def f():\n    from openworld_forget import load_world as lw'])
def test_a_template_reaches_the_module_that_has_the_name_and_no_other(line):
    assert [module_of(i) for i in imports(line, '')] == ['openworld_forget.worlds.load']
    assert 'openworld_forget.metrics.color' not in reached(module_of('openworld_forget.load_world'))[0]

@pytest.mark.parametrize('line', ['import openworld_forget', 'import openworld_forget as owf', 'from openworld_forget import *'])
def test_who_takes_the_package_whole_reaches_all_that_it_offers(line):
    found = {module_of(i) for i in imports(line, '')}
    assert found == {'openworld_forget'} and set(HOME.values()) <= set(reached(*found)[0])

def test_a_submodule_is_itself(): assert module_of('openworld_forget.core') == 'openworld_forget.core' == module_of('openworld_forget.core.noise')

def test_a_module_that_takes_names_from_the_package(tmp_path, monkeypatch):
    "Somebody's own data module: what it is made of is followed through the package's names."
    (tmp_path/'my_source.py').write_text('from openworld_forget import Subject\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    texts, _ = reached('my_source')
    assert 'openworld_forget.worlds.data' in texts and 'openworld_forget' not in texts and 'openworld_forget.worlds.load' not in texts

def test_an_edit_of_the_module_is_another_key_and_of_another_module_is_not(tmp_path, monkeypatch):
    import shutil
    package = tmp_path/'openworld_forget'
    shutil.copytree(ROOT/'openworld_forget', package, ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.setattr(source, '_folder', lambda: package)
    def key(): return source_key(module_of('openworld_forget.load_world'))
    def edit(module):
        f = package/f'{module}.py'
        f.write_text(f.read_text(encoding='utf-8') + '\n# edited\n', encoding='utf-8')
    first = key()
    edit('metrics/color')
    assert key() == first
    edit('worlds/world')
    assert key() != first

OWF = ['-c', 'from openworld_forget.audit.__main__ import owf; owf()']

@pytest.mark.parametrize('argv', [
    ['-m', 'openworld_forget.audit', '--budget', 'quik'], ['-m', 'openworld_forget.study'], ['-m', 'openworld_forget.study', '--help'],
    [*OWF, 'audt'], [*OWF, 'plan', '--help'], *([*OWF, c, '--help'] for c in CHECKS), [*OWF, 'subjects', '--size', '0'],
])
def test_a_wrong_option_is_said_before_anything_is_imported(argv):
    r = subprocess.run([sys.executable, '-X', 'importtime', *argv], capture_output=True, text=True, cwd=ROOT)
    assert r.returncode == (0 if '--help' in argv else 2) and 'usage: ' in r.stdout + r.stderr, r.stderr[-2000:]
    assert not {'torch', 'numpy', 'pydantic'} & {line.split('|')[-1].strip() for line in r.stderr.splitlines()}

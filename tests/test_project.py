"What holds for the project as a whole: notebooks and generated files agree, nothing names a machine, nothing draws from global randomness."
import ast, builtins, json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT

SKIP = {
    '.git',
    '.venv',
    'node_modules',
    'outputs',
    '_docs',
    '_proc',
    '__pycache__',
    '.ipynb_checkpoints',
    '.pytest_cache',
    '.ruff_cache',
    '.hypothesis',
    'runinfo',
    '.cache',
}
BINARY = {'.png', '.jpg', '.pdf', '.safetensors', '.parquet', '.npy', '.ico', '.woff2'}

def files(*suffixes, under='.'):
    "The project's own files, with or without git."
    for d, sub, names in os.walk(ROOT/under):
        sub[:] = sorted(s for s in sub if s not in SKIP and not s.endswith('.egg-info'))
        yield from (Path(d)/n for n in sorted(names) if not suffixes or n.endswith(suffixes))

def show(path): return path.relative_to(ROOT).as_posix()
def notebook(path): return json.loads(path.read_text(encoding='utf-8'))
def source(cell): return ''.join(cell['source'])

NOTEBOOKS = {show(p): p for p in files('.ipynb', under='nbs')}
MODULES = {show(p): p for p in files('.py', under='openworld_forget') if p.name not in ('__init__.py', '_modidx.py')}

@pytest.fixture
def copy(tmp_path):
    "The notebooks and their configuration in a folder of its own, without the exported package."
    def ignore(d, names): return [n for n in names if n in SKIP or n.endswith('.safetensors')]
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=ignore)
    for n in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md'): shutil.copy2(ROOT/n, tmp_path/n)
    return tmp_path

def python(code, cwd, **env):
    "Run code in a fresh interpreter; nbdev stays silent and does nothing under IN_TEST."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'HOME': str(cwd), 'JUPYTER_DATA_DIR': str(cwd/'.jupyter')} | env
    r = subprocess.run([sys.executable, '-c', code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stdout + r.stderr

# ---------------------------------------------------------------- notebooks and what is made from them
def test_exported_and_clean(copy):
    """`nbdev_export` and `nbdev_clean` on a copy give what is checked in: same files, same bytes. Of the package's `__init__.py`, which is
    written by hand, they keep all but the line of the version."""
    (copy/'openworld_forget').mkdir()
    init = (ROOT/'openworld_forget/__init__.py').read_text(encoding='utf-8')
    (copy/'openworld_forget/__init__.py').write_text(re.sub('^__version__.*$', '__version__ = "old"', init, flags=re.M), encoding='utf-8')
    python('from nbdev.doclinks import nbdev_export as e; from nbdev.clean import nbdev_clean as c; e.__wrapped__(); c.__wrapped__()', copy)
    def tree(root, under, suffix):
        return {
            p.relative_to(root).as_posix(): p.read_text(encoding='utf-8')
            for p in (root / under).rglob(f'*{suffix}')
            if not SKIP & set(p.parts[len(root.parts) :])
        }
    for under, suffix in (('openworld_forget', '.py'), ('nbs', '.ipynb'), ('.', 'pyproject.toml')):
        have, want = tree(ROOT, under, suffix), tree(copy, under, suffix)
        wrong = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
        assert not wrong, f'not exported or not clean: {wrong}. Run nbdev_export and nbdev_clean; delete modules that no notebook exports.'

@pytest.mark.skipif('nbs/index.ipynb' not in NOTEBOOKS, reason='no index notebook yet')
def test_readme_is_current(copy):
    "README.md is what nbs/index.ipynb gives."
    shutil.copytree(ROOT/'openworld_forget', copy/'openworld_forget', ignore=shutil.ignore_patterns('__pycache__'))
    python(
        f'import sys; sys.path.insert(0, {str(ROOT / "tools")!r}); import build_docs; build_docs.main(["--readme-only"])',
        copy,
        PYTHONPATH=str(copy),
    )
    assert (copy / 'README.md').read_text(encoding='utf-8') == (ROOT / 'README.md').read_text(encoding='utf-8'), (
        'README.md is not up to date. Run `make readme`.'
    )
    for p in (copy/'index_files').glob('*'):
        assert (ROOT/'index_files'/p.name).read_bytes() == p.read_bytes(), f'index_files/{p.name} is not up to date. Run `make readme`.'

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebook_form(name):
    "Title and one-line quote first; imports in cells of their own; a report template has one parameters cell."
    cells = notebook(NOTEBOOKS[name])['cells']; code = [c for c in cells if c['cell_type'] == 'code']
    form = re.fullmatch(r'# \S.*\n\n> \S.*', source(cells[0]).strip())
    assert cells[0]['cell_type'] == 'markdown' and form, (
        'the first cell is `# Title`, an empty line, `> one line`, and no more: nbdev turns it into front matter and drops the rest'
    )
    for c in code:      # building the docs executes every cell with an import
        if re.search(r'^#\|\s*(export|exporti|exports|eval: false)\b', source(c), re.M) or source(c).startswith('%%'): continue
        kinds = {isinstance(s, ast.Import | ast.ImportFrom) for s in ast.parse(re.sub(r'^[%!].*', '', source(c), flags=re.M)).body}
        assert len(kinds) < 2, f'imports belong in a cell of their own:\n{source(c)[:200]}'
    assert not [c for c in code if any(o['output_type'] == 'error' for o in c['outputs'])], 'a stored output is an error'
    if '/reports/' in name:
        assert sum('parameters' in c['metadata'].get('tags', []) for c in code) == 1, 'a template has exactly one cell tagged `parameters`'

def test_titles_differ():
    "Every page can be told from every other by its title."
    titles = {n: source(notebook(p)['cells'][0]).splitlines()[0] for n, p in NOTEBOOKS.items()}
    twice = {t: [n for n in titles if titles[n] == t] for t in titles.values() if list(titles.values()).count(t) > 1}
    assert not twice, twice

def torn_rows(text):
    "Rows of Markdown tables that have other cells than their head: a bar in a formula tears them."
    out, head = [], 0
    for line in text.splitlines():
        k = len(re.split(r'(?<!\\)\|', line.strip())) if line.startswith('|') else 0
        head = (head or k) if k else 0
        if k != head: out.append(line)
    return out

def test_no_row_of_a_table_is_torn():
    assert torn_rows('| a | b |\n|---|---|\n| $|x|$ | 1 |\n| $\\|x\\|$ | 1 |') == ['| $|x|$ | 1 |']
    for n, p in NOTEBOOKS.items():
        for c in notebook(p)['cells']:
            if c['cell_type'] == 'markdown': assert not (torn := torn_rows(source(c))), (n, torn)

PAGE = re.compile(r'`(?:nbs/)?((?:[a-z]+/)*[0-9]{2,3}_[a-z_]+)(?:\.ipynb)?`|\]\(([^)#\s]+\.(?:ipynb|md|yaml|py|cff))(?:#[^)]*)?\)|`([a-z_/]+\.(?:ipynb|md))`')

def dangling(text, folder):
    "Names of notebooks and files in a text that lead nowhere: links seen from `folder`; in backticks the path in nbs/ or in the project."
    stems = {n.removeprefix('nbs/').removesuffix('.ipynb') for n in NOTEBOOKS} | {show(p).removesuffix('.ipynb') for p in NOTEBOOKS.values()}
    for m in PAGE.finditer(text):
        page, link, file = m.groups()
        if page and page not in stems: yield m[0]
        if link and '://' not in link and not (folder/link).exists(): yield m[0]
        made = file and (file.startswith('outputs/') or file.split('/')[-1] in MADE)
        if file and not made and not any((d/file).exists() for d in (folder, ROOT, ROOT/'nbs')): yield m[0]

MADE = {'summary.ipynb'}                  # a study writes these

@pytest.mark.parametrize('name', [show(p) for p in files('.ipynb', under='nbs')] + ['README.md', 'CONTRIBUTING.md', 'outputs/README.md', 'weights/README.md'])
def test_no_name_leads_nowhere(name):
    "Pages and files that a text names exist, and so does every `make` target."
    p = ROOT/name
    texts = [source(c) for c in notebook(p)['cells']] if name.endswith('.ipynb') else [p.read_text(encoding='utf-8')]
    targets = set(re.findall(r'^([a-z-]+):', (ROOT/'Makefile').read_text(), re.M))
    assert not [x for t in texts for x in dangling(t, p.parent)]
    assert not [m for t in texts for m in re.findall(r'`make ([a-z-]+)', t) if m not in targets]

def test_every_variable_is_listed():
    "`nbs/reference/02_variables` lists every OWF_* variable that the code reads or sets, and no other."
    listed = re.findall(r'^\| `(OWF_[A-Z_]+)`', source(notebook(ROOT/'nbs/reference/02_variables.ipynb')['cells'][1]), re.M)
    code = [p for under in ('openworld_forget', 'tools', 'benchmarks') for p in files('.py', '.sh', under=under)] + [ROOT/'Makefile']
    assert sorted(listed) == sorted({v for p in code for v in re.findall(r'\bOWF_[A-Z_]+', p.read_text(encoding='utf-8'))})

def test_the_citation_is_of_this_version():
    import yaml
    from nbdev.config import get_config
    cff, readme = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8')), (ROOT/'README.md').read_text(encoding='utf-8')
    assert cff['version'] == get_config().version and f'version = {{{cff["version"]}}}' in readme
    paper = cff['references'][0]
    assert paper['title'] in readme and paper['url'].rpartition('/')[2] in readme and all(a['family-names'] in readme for a in paper['authors'])

def test_python_in_the_readme_names_what_exists():
    import importlib
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT/'README.md').read_text(encoding='utf-8'), re.S | re.M)
    found = [(n.module, a.name) for b in blocks for n in ast.walk(ast.parse(b)) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert found and not [f for f in found if not hasattr(importlib.import_module(f[0]), f[1])]

# ---- the documentation reads a signature where it stands: a string that names what comes later stops the build
def unknown_names(nb):
    "Names in strings of annotations of exported code that no cell so far has defined."
    known, found = set(dir(builtins)), []
    for c in (c for c in nb['cells'] if c['cell_type'] == 'code'):
        body = ast.parse(''.join(f'{x}\n' for x in source(c).splitlines() if not x.lstrip().startswith(('%', '!')))).body
        for n in body:
            if isinstance(n, (ast.ClassDef, ast.FunctionDef)): known.add(n.name)
            elif isinstance(n, (ast.Import, ast.ImportFrom)): known |= {(a.asname or a.name).split('.')[0] for a in n.names}
            else: known |= {x.id for x in ast.walk(n) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
        if not source(c).startswith('#| export'): continue
        for n in (x for b in body for x in ast.walk(b)):
            notes = [n.returns] if isinstance(n, ast.FunctionDef) else [n.annotation] if isinstance(n, (ast.arg, ast.AnnAssign)) else []
            for a in filter(None, notes):
                literal = {id(y) for x in ast.walk(a) if isinstance(x, ast.Subscript) and ast.unparse(x.value) == 'Literal' for y in ast.walk(x)}
                said = [x.value for x in ast.walk(a) if isinstance(x, ast.Constant) and isinstance(x.value, str) and id(x) not in literal]
                found += [x.id for t in said for x in ast.walk(ast.parse(t)) if isinstance(x, ast.Name) and x.id not in known]
    return found

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_signatures_name_what_is_there(name):
    assert not (found := unknown_names(notebook(NOTEBOOKS[name]))), found

def test_a_signature_that_names_what_comes_later_is_found():
    code = "class A:\n    b: 'B|None' = None\n    c: Literal['x']", 'class B: pass', "def f(b: 'B'): pass"
    cells = [dict(cell_type='code', source=[f'#| export\n{s}']) for s in code]
    assert unknown_names(dict(cells=cells)) == ['B'] and not unknown_names(dict(cells=cells[1:]))

def test_ruff():
    r = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', '.'], cwd=ROOT, capture_output=True, text=True
    )
    assert r.returncode == 0, r.stdout + r.stderr

# ---------------------------------------------------------------- every arrow downwards
WINGS = {'': 0, 'worlds': 1, 'training': 2, 'metrics': 2, 'study': 3, 'audit': 4, 'mini': 4}          # '': the ground (core, source, show)
NAMED = {       # a module that another names as a text, above itself -> why that is no arrow
    ('worlds.world', 'worlds.folders'): "who provides a world's data is imported by the name that its spec says, when it is asked for",
    ('worlds.world', 'mini.data'): 'the same, of the world that comes with the package',
    ('worlds.generate', 'training.adapt'): "the key of images names who else decides them: an adapted world's layers; nothing is imported",
}

def rooms():
    "Module -> (floor, wing, number) of the notebook that exports it; 02b is above 02 and below 03."
    out = {}
    for name, p in NOTEBOOKS.items():
        for m in re.findall(r'^#\| *default_exp (\S+)', '\n'.join(map(source, notebook(p)['cells'])), re.M):
            wing = m.rpartition('.')[0]
            out[m] = (WINGS[wing], wing, (int((k := re.match(r'(\d+)([a-z]?)', p.name))[1]), k[2]))
    return out

def arrows(module, text, known):
    "Modules that a module imports, wherever in it; and those that it names in a text."
    def of(name):
        while name and name not in known: name = name.rpartition('.')[0]
        return name
    package, imported, named = ['openworld_forget', *module.split('.')[:-1]], set(), set()
    for n in ast.walk(ast.parse(text)):
        if isinstance(n, ast.Import): imported |= {a.name for a in n.names}
        elif isinstance(n, ast.ImportFrom):
            base = [*package[:len(package) + 1 - n.level], *filter(None, [n.module])] if n.level else [n.module]
            imported |= {'.'.join([*base, a.name]) for a in n.names}
        elif isinstance(n, ast.Constant) and isinstance(n.value, str) and re.fullmatch(r'openworld_forget(\.\w+)+(:.*)?', n.value):
            named.add(n.value.partition(':')[0])
    return tuple({of(x.removeprefix('openworld_forget.')) for x in s} - {'', module} for s in (imported, named))

def upwards(module, targets, known):
    "Those of the targets that do not lie below: on a lower floor, or in the same wing under a lower number."
    floor, wing, number = known[module]
    return sorted(t for t in targets if not (known[t][0] < floor or (known[t][1] == wing and known[t][2] < number)))

def test_every_import_leads_downwards():
    "Ground, worlds, training beside metrics, study, audit and mini; within a wing by the notebook's number. Imports inside functions count."
    known = rooms()
    assert {m.replace('.', '/') for m in known} == {n.removeprefix('openworld_forget/').removesuffix('.py') for n in MODULES}
    found, used = [], set()
    for m in known:
        imported, named = arrows(m, MODULES[f'openworld_forget/{m.replace(".", "/")}.py'].read_text(encoding='utf-8'), known)
        found += [f'{m} imports {t}' for t in upwards(m, imported, known)]
        above = {(m, t) for t in upwards(m, named, known)}
        found += [f'{a} names {b}' for a, b in above - set(NAMED)]
        used |= above
    assert not found, '\n'.join(found)
    assert used == set(NAMED), f'named exceptions that nothing needs: {set(NAMED) - used}'

@pytest.mark.parametrize('line', ['from .engine import execute', 'import openworld_forget.mini.data', 'from ..study import main',
    'def f():\n    from openworld_forget.study.run import Run', "x = 'openworld_forget.audit.bank:f'"])
def test_an_arrow_that_leads_upwards_is_found(line):
    known = {'study.run': (3, 'study', 5), 'study.engine': (3, 'study', 6), 'study.main': (3, 'study', 9), 'study.plan': (3, 'study', 3),
             'mini.data': (4, 'mini', 5), 'audit.bank': (4, 'audit', 0)}
    at = 'study.plan' if 'def' in line else 'study.run'
    imported, named = arrows(at, line, known)
    assert len(upwards(at, imported | named, known)) == 1
    assert not upwards('study.run', arrows('study.run', 'from .plan import plan, Step', known)[0], known)

# ---------------------------------------------------------------- nothing of one machine
REGISTRIES = [
    'pypi' + '.org',
    'pythonhosted' + '.org',
    'registry.npmjs' + '.org',
    'registry.yarnpkg' + '.com',
    'deb.debian' + '.org',
    'download.pytorch' + '.org',
    'conda' + '.anaconda.org',
]
FOLDERS = ['/' + f + '/' for f in ('home/[a-z]', 'root', 'work', 'Users/[A-Za-z]', 'mnt', 'opt')]

def test_no_machine_in_files():
    "No path of one machine and no registry's address in any file."
    pattern = re.compile('|'.join([re.escape(r) for r in REGISTRIES] + [rf'(?<![\w.}}>/]){f}' for f in FOLDERS]))
    found = []
    for p in files():
        if p.suffix in BINARY: continue
        for i, line in enumerate(p.read_text(encoding='utf-8').splitlines(), 1):
            if m := pattern.search(line): found.append(f'{show(p)}:{i}: {m[0]}')
    assert not found, '\n'.join(found)

def test_locks():
    "package-lock.json has versions and hashes but no addresses; requirements.txt pins everything that requirements.in and settings.ini ask for."
    for folder in (ROOT, ROOT/'tools/katex'):
        lock = json.loads((folder/'package-lock.json').read_text())
        assert lock['packages']['']['dependencies'] == json.loads((folder/'package.json').read_text())['dependencies']
        packages = {k: v for k, v in lock['packages'].items() if k}
        assert packages and all(v['version'] and v['integrity'].startswith('sha512-') and 'resolved' not in v for v in packages.values())
    def pins(name): return dict(re.findall(r'^([\w.-]+)==(\S+)$', (ROOT/name).read_text().lower().replace('_', '-'), re.M))
    top, full = pins('requirements.in'), pins('requirements.txt')
    assert {k: full.get(k) for k in top} == top, 'requirements.txt was not made from requirements.in. Run `make lock`.'
    assert not [line for line in (ROOT/'requirements.txt').read_text().splitlines() if line.strip() and not re.match(r'#|[\w.-]+==[\w.]+$', line)]
    from nbdev.config import get_config
    assert not [
        r
        for r in (get_config().requirements + ' ' + get_config().dev_requirements).split()
        if re.split('[=<>]', r)[0].replace('_', '-').lower() not in full
    ]

# ---------------------------------------------------------------- nothing random by accident, nothing that can run code from a file
DRAWS = {'rand', 'randn', 'randint', 'randperm', 'normal', 'bernoulli', 'multinomial', 'poisson'}          # torch.f(..., generator=g)
LIKE = {'rand_like', 'randn_like', 'randint_like'}                                                         # take no generator at all
INPLACE = {'normal_', 'uniform_', 'random_', 'bernoulli_', 'exponential_', 'log_normal_', 'cauchy_'}        # tensor.f(..., generator=g)
NUMPY_OK = {'default_rng', 'Generator', 'SeedSequence', 'PCG64', 'Philox', 'BitGenerator'}

class Problems(ast.NodeVisitor):
    "Calls that draw from or set the global random state outside `torch.random.fork_rng`, and calls that unpickle."
    def __init__(self): self.found, self.forked = [], 0
    def say(self, node, what): self.found.append(f'line {node.lineno}: {what}')

    def visit_With(self, node):
        fork = any('fork_rng' in ast.unparse(i.context_expr) for i in node.items)
        self.forked += fork; self.generic_visit(node); self.forked -= fork

    def visit_Call(self, node):
        name = ast.unparse(node.func); head, _, last = name.rpartition('.'); kw = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if not self.forked:
            if head == 'torch' and (last in LIKE or (last in DRAWS and kw.get('generator', 'None') == 'None')):
                self.say(node, f'{name} without a generator')
            if head and last in INPLACE and kw.get('generator', 'None') == 'None': self.say(node, f'.{last} without a generator')
            if last == 'sample' and head.endswith('latent_dist') and not node.args and 'generator' not in kw:
                self.say(node, f'{name} without a generator')
            if head in ('np.random', 'numpy.random') and (last not in NUMPY_OK or (last == 'default_rng' and not node.args)):
                self.say(node, f'{name} is global or unseeded')
            if head == 'random' or name in ('torch.manual_seed', 'torch.seed', 'torch.random.manual_seed'):
                self.say(node, f'{name} touches the global state')
        if name == 'torch.load' and kw.get('weights_only') != 'True': self.say(node, 'torch.load without weights_only=True')
        if (head in ('pickle', 'dill', 'joblib', 'cloudpickle') and last in ('load', 'loads')) or kw.get('allow_pickle') == 'True':
            self.say(node, f'{name} can run code from a file')
        if last == 'from_pretrained' and kw.get('use_safetensors') == 'False': self.say(node, f'{name} falls back to pickles')
        self.generic_visit(node)

def problems(text):
    v = Problems(); v.visit(ast.parse(text)); return v.found

@pytest.mark.parametrize('name', MODULES)
def test_no_global_random_state_no_pickles(name):
    assert not (found := problems(MODULES[name].read_text(encoding='utf-8'))), '\n'.join(found)

@pytest.mark.parametrize('bad', ['torch.randn(3)', 'torch.randn_like(x)', 'x.normal_()', 'torch.randint(0, 9, (2,), '
    'generator=None)', 'np.random.randn(3)', 'np.random.default_rng()', 'random.random()',
                                 'torch.manual_seed(0)', 'vae.encode(x).latent_dist.sample()', 'torch.load(f)', 'pickle.load(f)', 'np.load(f, '
                                     'allow_pickle=True)', 'Net.from_pretrained(d, use_safetensors=False)'])
def test_the_check_finds(bad):
    assert len(problems(bad)) == 1

def test_the_check_allows():
    assert not problems('''
torch.randn(3, generator=g); x.normal_(generator=g); np.random.default_rng(0); vae.encode(x).latent_dist.sample(g); torch.load(f, weights_only=True); g.random()
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0); torch.randn(3)
''')

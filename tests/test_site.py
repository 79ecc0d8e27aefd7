"""The documentation site: built from a project of three notebooks, looked at as files; what it does with the real ones where that is quick."""
import json, os, re, shutil, subprocess, sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT/'tools'))
import docs_links, docs_pages, docs_run

def cell(source, kind='code'):
    return {'cell_type': kind, 'metadata': {}, 'source': source, **({'outputs': [], 'execution_count': None} if kind == 'code' else {})}

def write(path, *cells):
    path.write_text(json.dumps({'cells': [c | {'id': f'c{i:03}'} for i, c in enumerate(cells)], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}))

CAKE = '''#| export
class Cake(Record):
    "How a cake is made, in terms of `choose`."
    eggs: int = Field(3, ge=0)      # whole ones'''

PAGE = [
    cell('# Cakes\n\n> A page for the test.', 'markdown'),
    cell('#| default_exp cakes'),
    cell('#| export\nfrom pydantic import Field\nfrom openworld_forget.core import Record, choose'),
    cell('How many? $e^2$, and `choose` says which; see [how to change it](../CONTRIBUTING.md) and [Core](00_core.ipynb).', 'markdown'),
    cell(CAKE),
    cell('print("eggs:", Cake().eggs)'),
    cell('assert Cake().eggs == 3\nassert Cake.make(eggs=1).eggs == 1'),
]

BUILD = '''
import sys
from nbdev.doclinks import _build_modidx
from nbdev.export import nb_export
import build_docs
nb_export('nbs/howto/00_cakes.ipynb', 'openworld_forget')
_build_modidx()
for _ in range(2): build_docs.main(['--katex', 'katex', '--out', 'site'])
'''

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The site of a project of three notebooks, and what two builds of it said."
    home = tmp_path_factory.mktemp('project')
    taken = ['settings.ini', 'setup.py', 'pyproject.toml', 'CONTRIBUTING.md', 'nbs/_quarto.yml', 'nbs/nbdev.yml', 'nbs/styles.css',
             *(f'openworld_forget/{n}.py' for n in ('__init__', 'core', 'source', 'show'))]
    for f in taken:
        (home/f).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT/f, home/f)
    core = json.loads((ROOT/'nbs/00_core.ipynb').read_text())
    core['cells'] = [c for c in core['cells'] if 'nbs/reports' not in ''.join(c['source'])]         # a cell that needs the whole project
    (home/'nbs/00_core.ipynb').write_text(json.dumps(core))
    write(home/'nbs/index.ipynb', cell('# Test\n\n> A project.', 'markdown'), cell('See `Cake` on [its page](howto/00_cakes.ipynb).', 'markdown'))
    (home/'nbs/howto').mkdir()
    write(home/'nbs/howto/00_cakes.ipynb', *[{**c, 'source': c['source'].replace('](', '](../')} if c['cell_type'] == 'markdown' else c for c in PAGE])
    for f in ('katex.min.css', 'katex.min.js', 'contrib/auto-render.min.js', 'fonts/a.woff2'):
        (home/'katex'/f).parent.mkdir(parents=True, exist_ok=True)
        (home/'katex'/f).write_text('')
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST' and not k.startswith('OWF_')}
    env |= {'PYTHONPATH': f'{home}{os.pathsep}{ROOT/"tools"}', 'HOME': str(home), 'OWF_CACHE': str(home/'kept')}
    (home/'build.py').write_text(BUILD)
    r = subprocess.run([sys.executable, 'build.py'], cwd=home, env=env, capture_output=True, text=True, timeout=900)
    assert r.returncode == 0, r.stdout + r.stderr
    return home/'site', r.stdout

def test_every_link_of_the_site_leads_to_a_page_of_it(built):
    "No link leaves for the placeholder host, and every file and anchor is there."
    assert docs_links.broken(built[0], 'example.org') == []
    page = (built[0]/'howto/cakes.html').read_text()
    assert 'href="../core.html#choose"' in page and re.search(r'href="\.\./code/openworld_forget/cakes\.html#L\d+"', page)
    assert 'href="../contributing.html"' in page and 'id="L10"' in (built[0]/'code/openworld_forget/core.html').read_text()

def test_maths_need_no_network(built):
    page = (built[0]/'howto/cakes.html').read_text()
    assert 'src="../site_libs/katex/katex.min.js"' in page and 'cdn.' not in page

def test_a_record_shows_its_fields(built):
    page = (built[0]/'howto/cakes.html').read_text()
    assert 'whole ones; at least 0' in page and '**data' not in page

def test_checks_are_folded_away(built):
    page = (built[0]/'howto/cakes.html').read_text()
    folded = re.findall(r'<details[^>]*class="code-fold".*?</details>', page, re.S)
    assert len(folded) == 1 and 'assert' in folded[0] and 'eggs: 3' in page

def test_a_second_build_runs_nothing(built):
    assert re.findall(r'(\d+) notebooks run, (\d+) taken', built[1]) == [('3', '0'), ('0', '3')]

def test_a_page_is_run_again_when_what_made_it_changes(tmp_path, monkeypatch):
    "The key of a page: its cells and the source that they reach, not its outputs."
    write(f := tmp_path/'a.ipynb', cell('from openworld_forget.core import rng'), cell('rng(0, "a")'))
    key = docs_run.page_key(f, tmp_path)
    nb = json.loads(f.read_text())
    nb['cells'][0]['outputs'] = [{'output_type': 'stream', 'name': 'stdout', 'text': 'x'}]
    f.write_text(json.dumps(nb))
    assert docs_run.page_key(f, tmp_path) == key
    nb['cells'][1]['source'] = 'rng(1, "a")'
    f.write_text(json.dumps(nb))
    assert docs_run.page_key(f, tmp_path) != key
    f.write_text(f.read_text().replace('core import rng', 'source import imports').replace('rng(1', 'rng(0'))
    assert docs_run.page_key(f, tmp_path) != key

def test_every_page_is_in_one_group():
    pages = [p.relative_to(ROOT/'nbs').as_posix() for e in ('ipynb', 'md') for p in (ROOT/'nbs').rglob(f'*.{e}')
             if '.ipynb_checkpoints' not in p.parts]
    def leaves(o): return [o] if isinstance(o, str) else [x for v in (o if isinstance(o, list) else [o['contents']]) for x in leaves(v)]
    found = leaves(docs_pages.sidebar(ROOT/'nbs')['website']['sidebar']['contents'])
    assert sorted(found) == sorted(pages)

@pytest.mark.parametrize('link, why', {
    'https://example.org/x/core.html': 'placeholder', '/core.html': 'root of a server',
    'nowhere.html': 'not there', 'b.html#nothing': 'no such anchor', '#nothing': 'no such anchor',
}.items())
def test_the_check_finds(tmp_path, link, why):
    (tmp_path/'a.html').write_text(f'<a href="{link}">x</a><a href="b.html#here">y</a><a href="https://arxiv.org">z</a>')
    (tmp_path/'b.html').write_text('<p id="here">')
    [found] = docs_links.broken(tmp_path, 'example.org')
    assert why in found

def test_addresses_of_the_host_become_pages():
    base = git = 'https://example.org/owf'
    assert docs_links.target(f'{git}/blob/main/openworld_forget/worlds/data.py#L9', base, git) == ('code/openworld_forget/worlds/data.html', 'L9')
    assert docs_links.target(f'{base}/worlds/data.html#subject', base, git) == ('worlds/data.html', 'subject')
    assert docs_links.target(base, base, git) == ('index.html', '') and docs_links.target('https://arxiv.org/abs/1', base, git) is None

@pytest.mark.parametrize('source, folded', {
    'assert f() == 1': True, 'test_eq(f(), 1)': True, 'try: f(); assert False\nexcept ForgetError as e: print(e)': True, 'x = f()\nassert x == 1': True,
    'x = f()\nplot(x)\nprint(x)\nassert x': False, 'f()': False, '%matplotlib inline': False,
}.items())
def test_what_counts_as_a_check(source, folded):
    assert docs_pages.mostly_checks(source) == folded


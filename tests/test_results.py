"The result that the README shows is the one that is checked in, and says what made it."
import hashlib, json

import pandas as pd

from conftest import ROOT
from openworld_forget.metrics.registry import LINES
from openworld_forget.study.pages import first_numbers

RESULTS = ROOT/'nbs/results'

def test_the_files_are_those_of_the_manifest():
    said = json.loads((RESULTS/'manifest.json').read_text(encoding='utf-8'))
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in RESULTS.iterdir() if p.name != 'manifest.json'}
    assert found == said['sha256'], 'nbs/results was edited by hand, or half taken. Run `make results`.'
    assert said['study'] == 'reproduce' and not any(m['dirty'] for m in said['made'].values()), 'the result was made by source that was not committed'

def test_the_readme_shows_the_table_and_the_picture():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    rows = pd.read_csv(RESULTS/'headline.csv')
    for line in first_numbers(rows).splitlines(): assert line.replace(' ', '') in text.replace(' ', ''), line
    assert '(nbs/results/pictures.png)' in text and '(nbs/results/manifest.json)' in text

def test_every_row_is_in_the_registry():
    rows = pd.read_csv(RESULTS/'headline.csv')
    assert set(rows.name) == set(LINES) and set(rows.method) == {'db', 'db-dc'}
    for r in rows.drop_duplicates('measure').itertuples(): assert r.measure == LINES[r.name].title(r.split), r.measure

def test_half_a_result_is_not_taken(tmp_path):
    import subprocess, sys
    r = subprocess.run([sys.executable, str(ROOT/'tools/results.py'), str(tmp_path), '--to', str(tmp_path/'out')], capture_output=True, text=True)
    assert r.returncode == 1 and 'make reproduce' in r.stderr and not (tmp_path/'out').exists()

def test_the_runs_that_answers_are_made_of_are_whole_and_of_their_study():
    from openworld_forget.study.files import read_study
    said = json.loads((RESULTS/'manifest.json').read_text(encoding='utf-8'))['runs']
    assert said and all(m['made'] and m['runs'] == len(pd.read_csv(RESULTS/f'{n}.csv')) for n, m in said.items())
    for name, m in said.items():
        s, t = read_study(m['study']), pd.read_csv(RESULTS/f'{name}.csv')
        assert s.name == name and set(t.method) <= set(s.methods) and set(t.seed) == set(s.seeds) and t.notna().all().all()
        if 'front' in s.steps: assert (t.groupby('method').size() == len(s.concepts)*len(s.seeds)).all()

def test_runs_are_taken_of_whole_methods_alone_and_beside_what_was_taken(tmp_path):
    import shutil, sys
    from test_fronts import STUDY, made
    sys.path.insert(0, str(ROOT/'tools'))
    import results
    to, home, file = tmp_path/'out', made(tmp_path/'home', skip=[('ti', 'cat-noto', 1)]), tmp_path/'demo.yaml'
    shutil.copytree(RESULTS, to); file.write_text(STUDY.model_dump_json())
    for f in home.rglob('units.csv'): (f.parent/'front.json').write_text(json.dumps(dict.fromkeys(('git', 'dirty', 'source', 'versions', 'python', 'device'))))
    t = pd.read_csv(results.take_runs(str(file), home, to)); assert 'ti' not in set(t.method) and len(t) == 6*(len(STUDY.methods) - 1)
    m = json.loads((to/'manifest.json').read_text()); assert m['study'] == 'reproduce' and m['runs']['demo']['runs'] == len(t) and set(m['sha256']) == {
        p.name for p in to.iterdir()} - {'manifest.json'}

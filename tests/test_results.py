"The result that the README shows is the one that is checked in, and says what made it."
import hashlib, json, shutil

import pandas as pd, pytest

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

def test_the_runs_that_answers_are_made_of_are_those_of_their_study():
    from openworld_forget.study.files import read_study
    said = json.loads((RESULTS/'manifest.json').read_text(encoding='utf-8'))['runs']
    assert said and all(m['made'] and m['runs'] == len(pd.read_csv(RESULTS/f'{n}.csv')) for n, m in said.items())
    for name, m in said.items():
        s, t = read_study(m['study']), pd.read_csv(RESULTS/f'{name}.csv').fillna({'subject': ''})
        keys = results().KEYS[s.steps[0]]
        assert s.name == name and set(t.method) <= set(s.methods) and set(t.seed) <= set(s.seeds) and t.notna().all().all() and not t.duplicated(keys).any()
        assert set(t.subject) <= {'', *s.concepts}

def results():
    import sys
    sys.path.insert(0, str(ROOT/'tools'))
    import results
    return results

@pytest.fixture
def taken(tmp_path):
    "(the study file; a folder with the checked-in results; a function that makes runs by hand and takes them)"
    from test_fronts import STUDY, made
    to, file = tmp_path/'out', tmp_path/'demo.yaml'
    shutil.copytree(RESULTS, to); file.write_text(STUDY.model_dump_json())
    def take(name, skip, change=lambda t: t):
        home = made(tmp_path/name, skip=skip)
        for f in home.rglob('units.csv'):
            change(pd.read_csv(f)).to_csv(f, index=False)
            (f.parent/'front.json').write_text(json.dumps(dict.fromkeys(('git', 'dirty', 'source', 'versions', 'python', 'device')) | dict(git=name)))
        return pd.read_csv(results().take_runs(str(file), home, to)), json.loads((to/'manifest.json').read_text())
    return STUDY, to, take

CELLS = [(c, s) for c in ('cat-noto', 'dog-fluent') for s in (0, 1, 2)]

def test_runs_of_two_machines_come_together_and_the_manifest_says_what_both_have(taken):
    from openworld_forget.study.fronts import whole
    study, to, take = taken
    late = [m for m in study.methods if m not in ('db-plain', 'dc-1')]
    one, m = take('one', [('dc-1', c, s) for c, s in CELLS] + [('ti', 'cat-noto', 1)])
    assert len(one) == 6*len(study.methods) - 7 and m['study'] == 'reproduce' and m['runs']['demo']['runs'] == len(one) and not m['runs']['demo']['again']
    assert set(m['sha256']) == {p.name for p in to.iterdir()} - {'manifest.json'}
    assert set(whole(study, one).method) == set(study.methods) - {'dc-1', 'ti'}
    two, m = take('two', [(n, c, s) for n in late for c, s in CELLS], lambda t: t.assign(value=t.value*(1 + 1e-5*(t.kind == 'lpips'))))
    assert list(dict.fromkeys(two.method)) == study.methods and len(two) == 6*len(study.methods) - 1
    pd.testing.assert_frame_equal(two[two.method != 'dc-1'].reset_index(drop=True), one)                    # what was there stays as it was
    [again] = m['runs']['demo']['again']; assert again['rows'] == 6 and 0 < again['largest_difference']['lpips'] < 2e-5
    assert {x['git'] for x in m['runs']['demo']['made']} == {'one', 'two'}

@pytest.mark.parametrize('kind, by', [('lpips', 1.01), ('fidelity', .99), ('right', 0.)])
def test_runs_of_other_code_are_not_added(taken, kind, by):
    study, to, take = taken
    take('one', [(m, c, s) for m in study.methods if m != 'db-plain' for c, s in CELLS])
    before = {p.name: p.read_bytes() for p in to.iterdir()}
    with pytest.raises(SystemExit, match='other code or another study'): take('two', [], lambda t: t.assign(value=t.value.where(t.kind != kind, t.value*by)))
    assert {p.name: p.read_bytes() for p in to.iterdir()} == before

def test_runs_without_one_that_is_there_are_not_added(taken):
    study, to, take = taken
    take('one', [(m, c, s) for m in study.methods if m != 'db-plain' for c, s in CELLS])
    with pytest.raises(SystemExit, match='no run in common'): take('two', [('db-plain', c, s) for c, s in CELLS])

def test_parts_of_chains_come_together():
    r, keys = results(), results().KEYS['sequence']
    t = pd.DataFrame([dict(method=m, seed=s, stage=k, subject=c, kind=n, value=v, floor=1.) for m in ('a', 'b') for s in (0, 1) for k in (1, 2)
                      for c, n, v in (('', 'drop', 10.*k), ('cat-noto', 'fidelity', .5))])
    assert r.differences(t, t.assign(value=t.value + 1*(t.kind == 'drop')), keys) == {'value (points)': 1., 'value': 0., 'floor (points)': 0., 'floor': 0.}
    with pytest.raises(SystemExit, match='other code'): r.differences(t, t.assign(value=t.value + .01), keys)
    assert r.differences(t[t.method == 'a'], t[t.method == 'b'], keys) == {}

def test_a_table_is_taken_as_it_is(tmp_path):
    to = tmp_path/'out'; shutil.copytree(RESULTS, to); (tmp_path/'costs.csv').write_text('method,step\ndb,1.23456789\n')
    results().take_table(tmp_path/'costs.csv', to); m = json.loads((to/'manifest.json').read_text())
    assert (to/'costs.csv').read_text() == 'method,step\ndb,1.234568\n'; assert m['study'] == 'reproduce'
    assert set(m['tables']['costs.csv']) >= {'git', 'dirty', 'device'}
    assert set(m['sha256']) == {p.name for p in to.iterdir()} - {'manifest.json'}
    with pytest.raises(SystemExit, match='is not there'): results().take_table(tmp_path/'cost.csv', to)

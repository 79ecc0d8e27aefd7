"""Methods at equal fidelity: from the units of runs to tables, sentences and the report, on runs made by hand."""
import json, re
import numpy as np, pandas as pd, pytest
from openworld_forget.core import ForgetError, rng
from openworld_forget.study.fronts import KINDS, areas_table, cells, families, gains_table, grid, limits_said, members_table, said_of_gains, scope
from openworld_forget.study.records import Study, run_folder
from openworld_forget.study.results import template_code
from openworld_forget.study.step_front import units_of

PLAIN = {'s1': .25, 's2': .5, 's3': .75, 'db-plain': 1.}
DC = {'dc-1': (.95, .8), 'dc-10': (.8, .5), 'dc-100': (.3, .1), 'dc-over': (1.1, .3)}                      # (learned, part of the drift that is left)
STUDY = Study(
    name='demo', concepts=['cat-noto', 'dog-fluent'], seeds=[0, 1, 2], steps=['front'], reports=['methods'],
    methods=[*PLAIN, *DC, 'oft-plain', 'ti'],
    variants={**{n: dict(of='db-plain', strength=s) for n, s in PLAIN.items() if n != 'db-plain'},
              **{n: dict(of='db-dc-nopr', correction=dict(over=3.).get(n[3:]) or float(n[3:])) for n in DC}})

def made(home, skip=()):
    "Runs whose drift is that of a parabola in the strength, times what a method leaves of it."
    for m in STUDY.methods:
        for c in STUDY.concepts:
            for seed in STUDY.seeds:
                if (m, c, seed) in skip: continue
                r = rng(seed, 'made', c, m)
                s, left = (PLAIN[m], 1.) if m in PLAIN else DC.get(m, (1.6, 1.) if m == 'oft-plain' else (.1, 0.))
                drift, base = left*s**2, np.ones(200)
                lost = np.zeros(200)
                lost[:round(100*drift + r.normal(0, 2))*(drift > 0)] = 1
                p = [f'p{i}' for i in range(10)]
                noisy = lambda x: np.clip(x + r.normal(0, .01, 10), 0, 1)*(drift > 0)
                t = [units_of('right', range(200), base - lost, base, base), units_of('lpips', p, noisy(.4*drift), 0., .5),
                     units_of('colour', p, noisy(.2*drift), 0., .3), units_of('fidelity', p, .4 + .3*s + r.normal(0, .002, 10), .4),
                     units_of('text', p, .3, .3)]
                f = run_folder(home, c, m, seed); f.mkdir(parents=True)
                pd.concat(t).to_csv(f/'units.csv', index=False)
                pd.DataFrame(dict(value=[0.])).to_parquet(f/'front.parquet')
    return home

@pytest.fixture(scope='module')
def home(tmp_path_factory): return made(tmp_path_factory.mktemp('home'))

@pytest.fixture(scope='module')
def tables(home):
    g = grid(cells(STUDY, home)); return g, gains_table(STUDY, g), members_table(STUDY, g), areas_table(STUDY, g)

def row(t, **k): return t.loc[np.logical_and.reduce([t[a] == b for a, b in k.items()])].iloc[0]

def test_a_better_method_is_called_better_and_by_how_much(tables):
    g, gains, _, _ = tables; r = row(gains, method='dc-10', kind='drop')
    joined = np.interp(.8, [.75, 1.], [100*.75**2/2, 50.]); assert abs(r.gained - (joined - 50*.5*.64)) < 2 and r.low > 0 and r.cells == 6
    said = said_of_gains(gains, 'dc-10', 'db-plain'); assert '**better**' in said and 'n = 6 trainings' in said

def test_what_is_worse_is_worse_by_so_much_and_not_by_less_than_nothing(tables):
    _, gains, _, _ = tables; worse = gains.assign(beyond=False, gained=-3., low=-5., high=-1.)
    said = said_of_gains(worse, 'dc-10', 'db-plain'); assert 'worse by 3.0 [1.0, 5.0]' in said and 'by -' not in said
    assert 'not decided, gain 1.0 [-5.0, 1.0]' in said_of_gains(worse.assign(gained=1., high=1.), 'dc-10', 'db-plain')

def test_beyond_the_null_a_method_can_be_better_and_never_worse(tables):
    "More faithful than the null ever is: with less drift it is better, with more there is nothing to compare."
    _, gains, _, areas = tables; more, less = (row(gains, method=m, kind='drop') for m in ('oft-plain', 'dc-over'))
    assert more.beyond and less.beyond and more.high < 0 < less.low and abs(less.gained - (50 - 50*.3*1.21)) < 2
    assert '**not comparable**' in said_of_gains(gains, 'oft-plain', 'db-plain')
    assert 'more than the null ever has' in said_of_gains(gains, 'dc-over', 'db-plain')
    assert np.isnan(row(areas, family='ti', kind='lpips').area)                   # never three quarters as faithful

def test_areas_are_ordered_as_the_methods_are(tables):
    a = tables[3]; null, dc = (row(a, family=f, kind='drop') for f in ('db-plain', 'db-dc-nopr'))
    assert dc.high < null.low and null.members == 4 and null.field == 'strength'

def test_a_member_has_its_floor_and_interval(tables):
    r = row(tables[2], method='s2'); assert abs(r['drop'] - 12.5) < 2 and r.lpips_low < r.lpips < r.lpips_high and r.lpips_floor == .5 and r.cells == 6

def test_what_a_weight_does_is_said(tables):
    said = limits_said(STUDY, tables[0]); assert len(said) == 2 and re.search(r'`db-dc-nopr`, correction from 1 to 100: accuracy drop .* to ', said[1])
    assert '2 subjects (cat-noto, dog-fluent) with 3 training seeds each' in scope(STUDY, *tables[:2])

def test_cells_that_a_method_lacks_are_left_out_of_all(tmp_path):
    g = grid(cells(STUDY, made(tmp_path, {('ti', 'dog-fluent', 1), ('s1', 'dog-fluent', 1)}))); assert g.subjects == STUDY.concepts and g.seeds == 2

@pytest.mark.parametrize('skip,why', [
    ({(m, c, s) for m in ('ti',) for c in STUDY.concepts for s in STUDY.seeds if s or c == 'cat-noto'}, ''),
    ({(m, c, s) for m in STUDY.methods for c in STUDY.concepts for s in STUDY.seeds}, 'no run of the step front')])
def test_too_little_is_one_error_or_fewer_cells(tmp_path, skip, why):
    if why:
        with pytest.raises(ForgetError, match=why): grid(cells(STUDY, made(tmp_path, skip)))
    else: g = grid(cells(STUDY, made(tmp_path, skip))); assert g.subjects == ['dog-fluent'] and g.seeds == 1

def test_no_null_is_one_error(home):
    s = STUDY.but(methods=['db-plain', *DC], variants={k: v for k, v in STUDY.variants.items() if k in DC})
    with pytest.raises(ForgetError, match='has no null'): gains_table(s, grid(cells(s, home)))

def test_the_report_runs_on_them(home, monkeypatch, capsys):
    "Every cell of the template, in this process: what it writes is what the tables say."
    import matplotlib.pyplot as plt
    code = template_code('methods'); said = dict(study=STUDY.model_dump_json(), home=str(home))
    for k, v in said.items(): code = re.sub(rf"(?m)^{k} = .*$", lambda m, k=k, v=v: f'{k} = {v!r}', code)
    exec(compile(code, 'methods', 'exec'), {}); plt.close('all')
    text = (home/'methods.txt').read_text(); made_of = json.loads((home/'methods.json').read_text())
    assert '`dc-10` against rewound `db-plain`' in text and 'not comparable' in text
    assert all((home/f).is_file() for f in made_of['files']) and (home/'figures/fronts-db-plain.png').is_file()
    t = pd.read_csv(home/'tables/gains.csv'); assert set(t.kind) == set(KINDS) and len(t) == 3*6

def test_a_study_of_nulls_alone_has_fronts_and_no_gains(tmp_path, capsys):
    plain = STUDY.but(methods=list(PLAIN), variants={k: v for k, v in STUDY.variants.items() if k in PLAIN})
    home = made(tmp_path); g = grid(cells(plain, home)); t = gains_table(plain, g)
    assert t.empty and {'method', 'null', 'gained'} <= set(t.columns) and '4 members' not in scope(plain, g, t) and limits_said(plain, g)

def test_what_differs_in_a_word_is_no_family():
    refs = {n: dict(of='ref-append', adaptation=dict(pictures=n)) for n in ('class', 'grey')} | {'half': dict(of='ref-append', strength=.5)}
    s = STUDY.but(methods=['ref-append', *refs], variants=refs); assert families(s) == {
        'ref-append': ('strength', ['half', 'ref-append']), 'class': ('', ['class']), 'grey': ('', ['grey'])}

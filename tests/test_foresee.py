"""Can drift be foreseen? One tiny study from the file to the report and the plan that reads it."""
import json, re
import numpy as np, pandas as pd, pytest, torch
from scipy.stats import t as student
from openworld_forget.core import ForgetError, rng
from openworld_forget.metrics.stats import mean_interval_of
from openworld_forget.study import step_foresee
from openworld_forget.study.foresee import images_of_study, kept_by, one_run, oriented, over_both, rank_correlation, with_outcomes
from openworld_forget.study.plan import forwards, plan
from openworld_forget.study.records import FORESEEN, READS, Study, run_folder
from openworld_forget.study.results import template_code
from openworld_forget.study.step_foresee import COLUMNS, FILE, PREDICTORS, lead_of, looked_ahead, shown
from openworld_forget.study.run import Run

STUDY = Study(name='foreseen', concepts=['cat-noto', 'dog-fluent'], methods=['lora-plain'], seeds=[0, 1], steps=['foresee'], reports=['forecast'],
              budget='smoke', overrides=dict(splits=['heldout'], benchmarks=1))

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "The units of two runs of one subject, and the runs."
    home = tmp_path_factory.mktemp('foreseen')
    mp = pytest.MonkeyPatch(); mp.setenv('OWF_OUTPUTS', str(home))
    for k in ('LOOK', 'ASK'): mp.setattr(step_foresee, k, 2)                       # as few forwards as show the road
    runs = [Run(STUDY.model_dump_json(), str(home/'foreseen'), 'cat-noto', 'lora-plain', s) for s in STUDY.seeds]
    world = runs[0].world
    yield runs, [looked_ahead(r.on(world))[1] for r in runs], home
    mp.undo()

def test_a_row_per_image_with_what_was_lost_and_what_was_known(done):
    runs, tables, _ = done; t = tables[0]
    assert list(t) == COLUMNS and len(t) == 16 and np.isfinite(t.select_dtypes('number')).all().all() and set(t.word) == {'cat face'}
    assert t.after.ne(t.base).any() and all(t[p].nunique() > 1 for p in PREDICTORS)

def test_images_and_foresight_are_the_same_for_both_seeds_and_the_measured_noise_is_not(done):
    (a, b), (x, y), _ = done; assert [i.key for i in shown(a)] == [i.key for i in shown(b)]
    assert x[[*PREDICTORS, 'class']].equals(y[[*PREDICTORS, 'class']]) and not x.base.equals(y.base)

def test_what_is_foreseen_presumes_no_answer_of_the_measurement(done):
    "The null's lead comes from other noise than the lead that is measured: else it would correlate with what was lost by its noise alone."
    runs, (x, _), _ = done; assert not np.allclose(-x.margin, x.base) and np.corrcoef(-x.margin, x.base)[0, 1] > 0

def test_a_lora_of_two_steps_moves_less_than_the_noise_of_the_lead(done):
    runs, tables, _ = done
    for t in tables: assert (t.base - t.after).abs().mean() < t.base.std()

def test_the_plan_has_a_step_a_run_keyed_by_its_images(tmp_path, monkeypatch):
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path)); steps = plan(STUDY); assert [s.name for s in steps] == ['foresee']*4 + ['forecast']
    assert forwards(STUDY)['foresee'] > 0 and set(READS['foresee']) <= set(STUDY.limits.model_dump()) and FORESEEN > 0
    assert len({s.key for s in steps}) == 5

def test_a_study_without_such_runs_is_refused(tmp_path):
    with pytest.raises(ForgetError, match=r'steps: .foresee'): images_of_study(STUDY, tmp_path)

def test_the_report_runs_on_made_up_runs(tmp_path):
    "Every cell of the template, in this process: six classes of subjects, of which the gradient knows all and the nulls nothing."
    import matplotlib.pyplot as plt
    words = {'cat-noto': 'cat face', 'dog-fluent': 'dog face', 'robot-fluent': 'robot', 'tulip-fluent': 'tulip', 'rocket-fluent': 'rocket',
             'guitar-fluent': 'guitar'}
    study = STUDY.but(concepts=list(words), methods=['db-plain', 'lora-plain'])
    g, home = rng(0, 'report'), tmp_path/'made'
    for c, w in words.items():
        truth = g.standard_normal(48)
        for m in study.methods:
            for s in study.seeds:
                folder = run_folder(home, c, m, s); folder.mkdir(parents=True)
                known = {p: g.standard_normal(48) for p in PREDICTORS} | dict(gradient=truth, after=.3 - truth - .1*g.standard_normal(48))
                images = dict(word=w, benchmark=['a', 'b']*24, split='heldout', number=range(48), base=.3) | {'class': [f'x{i//4}' for i in range(48)]}
                pd.DataFrame(images | known)[COLUMNS].to_csv(folder/FILE, index=False)
    pd.DataFrame({'x': [1]}).to_parquet(home/'done.parquet')
    code = template_code('forecast'); said = dict(study=study.model_dump_json(), home=str(home))
    for k, v in said.items(): code = re.sub(rf"(?m)^{k} = .*$", lambda m, k=k, v=v: f'{k} = {v!r}', code)
    exec(compile(code, 'forecast', 'exec'), {}); plt.close('all')
    made_of = json.loads((home/'forecast.json').read_text()); assert all((home/f).is_file() for f in made_of['files'])
    text, runs = (home/'forecast.txt').read_text(), pd.read_csv(home/'tables/forecast-runs.csv')
    assert text.count('Shown to be better than the null (Holm over 8 predictors): gradient alignment') >= 2 and '(12 runs, 6 classes)' in text
    assert len(runs) == 2*2*12 and set(runs.apart) == {'classes', 'kinds'}
    assert all((home/f'figures/{f}.png').is_file() for f in ('forecast', 'predictors'))

def test_the_study_file_says_what_it_needs():
    from openworld_forget.study.files import read_study
    s = read_study('studies/foresee.yaml'); assert len(s.concepts) >= 8 and len(s.seeds) >= 3 and s.reports == ['forecast']
    assert s.limits.per_class == 3

def test_a_lead_is_positive_exactly_where_the_own_prompt_has_the_least_error():
    e = torch.rand(400, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lead_of(e) > 0, e.double().mean(-1).argmin(1) == 0)

def test_an_image_that_flips_has_lost_lead_and_one_that_is_gained_has_won_some(done):
    "Rivals that spread make their mean go away and one of them win: against the mean the signs would differ."
    _, tables, _ = done; t = with_outcomes(tables[0]); flips = with_outcomes(tables[0].assign(after=-t.base))
    assert set(flips.dropped) == {1., -1.} and (np.sign(flips.lost) == flips.dropped).all()
    assert (t.lost[t.dropped == 1] > 0).all() and (t.lost[t.dropped == -1] < 0).all()
    before, after = (lead_of(torch.tensor([[x]]).transpose(1, 2)) for x in ([1., 2, 3], [2., 1, 11]))
    assert before > 0 > after

WORDS, CLASSES = np.array(list('aabbcdefgh')), np.repeat(range(112), 3)        # what the study ships: ten subjects of eight classes, 336 images

def test_the_interval_of_a_rho_holds_that_of_other_images_and_the_spread_of_subjects_alone_does_not():
    "All of what a predictor and an outcome share is a property of the images, the same under all subjects."
    g, W, held, naive = rng(0, 'rho of other images'), kept_by(CLASSES), [], []
    true = 6/np.pi*np.arcsin(.3/4)
    for _ in range(250):
        p, r = g.standard_normal((2, 336)); r = .3*p + .91**.5*r
        x, y = (v + g.standard_normal((10, 336)) for v in (p, r))
        v = np.stack([rank_correlation(a, b, W) for a, b in zip(x, y)], 1)
        for hits, (low, high) in ((held, over_both(v, WORDS).ends()), (naive, mean_interval_of(v[0]))): hits.append(low <= true <= high)
    assert .9 <= np.mean(held) <= .98 and np.mean(naive) < .85, (np.mean(held), np.mean(naive))

def test_the_forecast_of_one_run_holds_it_on_other_images_and_the_spread_of_subjects_alone_does_not():
    g, held, naive = rng(0, 'one run'), [], []
    of = np.unique(WORDS, return_inverse=True)[1]
    for _ in range(400):
        image, other = 25*g.standard_normal((2, 112))
        y = (3*g.standard_normal(8)[of][:, None] + 3*g.standard_normal((10, 3)))[..., None] + image
        new = 3*g.standard_normal() + 3*g.standard_normal() + other.mean()
        low, high = one_run(y.mean(2), WORDS, y.mean((0, 1)), np.repeat(range(7), 16)).ends(); held.append(low <= new <= high)
        a = y.mean((1, 2)); naive.append(abs(new - a.mean()) <= student.ppf(.975, 9)*a.std(ddof=1)*1.1**.5)
    assert .92 <= np.mean(held) <= .985 and np.mean(naive) < .9, (np.mean(held), np.mean(naive))

def test_a_null_takes_its_sign_and_its_place_from_subjects_of_other_classes():
    v = np.array([[[.15, .15, .15, .15]], [[-.5, -.3, -.4, .2]]]); signed, best = oriented(v, list('aabc'))
    assert signed[1].tolist() == [[.5, .3, .4, -.2]] and signed[0].tolist() == v[0].tolist()
    assert best.tolist() == [[.15, .15, .15, -.2]]              # without class a, whose subjects would say the second for themselves

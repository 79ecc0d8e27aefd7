"""Can drift be foreseen? One tiny study from the file to the report and the plan that reads it."""
import numpy as np, pytest
from openworld_forget.core import ForgetError
from openworld_forget.study import step_foresee
from openworld_forget.study.foresee import images_of_study
from openworld_forget.study.plan import forwards, plan
from openworld_forget.study.records import FORESEEN, READS, Study
from openworld_forget.study.step_foresee import COLUMNS, PREDICTORS, looked_ahead, shown
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
    assert list(t) == COLUMNS and len(t) == 16 and np.isfinite(t.select_dtypes('number')).all().all() and t.base_right.isin([0, 1]).all()
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

def test_the_study_file_says_what_it_needs():
    from openworld_forget.study.files import read_study
    s = read_study('studies/foresee.yaml'); assert len(s.concepts) >= 8 and len(s.seeds) >= 3 and s.reports == ['forecast']

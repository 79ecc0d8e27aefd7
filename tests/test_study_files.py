"""Study files as people have them: what can be known before the first step is said before the first step, in one error that names the culprit, and a
step is keyed by what it reads: after an edit only what the edit concerns is run again."""
import json

import pytest
import yaml
from PIL import Image
from openworld_forget.core import ForgetError, write_json
from openworld_forget.training.methods import METHODS
from openworld_forget.study.records import BUDGETS, Budget, READS, Study
from openworld_forget.study.run import Run
from openworld_forget.study.results import collect, finish
from openworld_forget.study.main import main
from openworld_forget.study.plan import plan
from openworld_forget.study.files import read_study, ready, study_reports
from openworld_forget.worlds.world import spec_of

import archives
from conftest import ROOT

HEAD = 'name: x\nconcepts: [cat-noto]\n'
OWN = 'name: x\nmethods: [{m}]\nconcepts: [cat-noto]\n'

def refused(path, *says, text=None):
    "The study file is refused by one `ForgetError` that says all of this; its message."
    if text is not None: path.write_text(text, encoding='utf-8')
    with pytest.raises(ForgetError) as e: read_study(path)
    for s in says: assert s in str(e.value), str(e.value)
    assert '\n' not in str(e.value) and 'Traceback' not in str(e.value)
    return str(e.value)

@pytest.fixture
def file(tmp_path): return tmp_path/'s.yaml'

# ---------------------------------------------------------------- what a field may say
@pytest.mark.parametrize('field', Budget.model_fields)
@pytest.mark.parametrize('value', ['0', '-1', 'yes', '1000000000000', '.nan', 'many', '[]', '{a: 1}', '""', '-.inf'])
def test_no_field_of_a_budget_takes_nonsense(file, field, value):
    "0 is taken only where it has a meaning of its own (`colors`: none); a truth value never counts."
    if (field, value) == ('colors', '0'): return
    refused(file, 'Budget', text=HEAD + f'overrides: {{{field}: {value}}}')

@pytest.mark.parametrize('field, value', [(f, v) for f, vs in dict(
    prior='-1 yes .inf much', correction='-.5 yes 1.0e9', source='clas [class] null 3', share='0 -1 yes 99', images='0 -3 2.5 yes', name='y', lamda='3',
    recipe='3 [] {learning_rate:\u00a0.1} {lr:\u00a00} {lr:\u00a0-1} {lr:\u00a05} {steps:\u00a0-1} {steps:\u00a00} {steps:\u00a0yes} {batch:\u00a00} '
    '{beta2:\u00a01} {clip:\u00a00} {ema:\u00a01} {flat:\u00a02} {warmup:\u00a0-1} {forward:\u00a0-1} {weight_decay:\u00a0-1} {lr:\u00a0fast}',
    adaptation='lora {kind:\u00a0lroa} {rnak:\u00a02} {kind:\u00a0lora,\u00a0rank:\u00a00} {kind:\u00a0lora,\u00a0alpha:\u00a00} '
    '{kind:\u00a0lora,\u00a0targets:\u00a0[]} {kind:\u00a0lora,\u00a0targets:\u00a0[to_q,\u00a0to_q]} {rank:\u00a08} {text_encoder:\u00a02}',
).items() for v in vs.split(' ')])
def test_no_field_of_a_method_takes_nonsense(file, field, value):
    "In the fields of every method, and in those of a variant."
    value = value.replace('\u00a0', ' ')
    refused(file, text=HEAD + f'method_overrides: {{{field}: {value}}}')
    refused(file, text=HEAD + f'methods: [db, v]\nvariants: {{v: {{of: db, {field}: {value}}}}}')

WRONG = {
    'a typo in splits': ('overrides: {splits: [heldot]}', 'heldout'),
    'an unknown recipe field': ('method_overrides: {recipe: {learning_rate: .1}}', 'learning_rate', 'lr'),
    'a near recipe field': ('method_overrides: {recipe: {weight_decai: .1}}', 'weight_decay'),
    'a recipe field of a variant': ('methods: [db, v]\nvariants: {v: {of: db, recipe: {stepz: 3}}}', 'steps'),
    'no suspects': ('overrides: {suspects: 0}', 'suspects', '0'),
    'no steps': ('overrides: {steps: 0}', 'steps', '0'),
    'negative steps': ('overrides: {steps: -1}', 'steps', '-1'),
    'no steps in a recipe': ('method_overrides: {recipe: {steps: 0}}', '0 steps'),
    'two lengths of training': ('overrides: {steps: 9}\nmethod_overrides: {recipe: {steps: 3}}', 'both say'),
    'no sampling steps': ('overrides: {sampling_steps: 0}', 'sampling_steps'),
    'more sampling steps than timesteps': ('overrides: {sampling_steps: 1000}', 'sampling_steps'),
    'stages that do not increase': ('overrides: {stages: [4, 2]}', 'stages', 'increase'),
    'a stage twice': ('overrides: {stages: [2, 2, 3]}', 'increase'),
    'a first stage of one step': ('overrides: {stages: [1, 2]}', '2 steps or more'),
    'a stage beyond the schedule': ('overrides: {stages: [2, 1001]}', '1000 timesteps'),
    'one image a prompt': ('overrides: {per_prompt: 1}', 'per_prompt'),
    'too few images for KID': ('overrides: {prompts: 1, per_prompt: 2}', 'KID'),
    'more benchmarks than there are': ('overrides: {benchmarks: 8}', 'has 7'),
    'more prompts than there are': ('overrides: {prompts: 29}', 'has 28'),
    'more colours than there are': ('overrides: {colors: 12}', 'has 11'),
    'a split twice': ('overrides: {splits: [known, known]}', 'twice'),
    'a misspelt budget field': ('overrides: {per_clas: 2}', 'per_class'),
    'a misspelt field': ('sed: [0]', 'seeds'),
    'a prompt longer than the context': (f'prompts: ["{"a very " * 30}long way"]', 'tokens', 'reads'),
    'an empty prompt': ('prompts: [" "]', 'empty'),
    'a prompt twice': ('prompts: [a dog, "a dog "]', 'twice'),
    'a prompt like a row of the tables': ('prompts: ["(mean)"]', '(mean)', 'put the word first'),
    'a prompt in brackets': ('prompts: [" (a dog)"]', 'put the word first'),
    'a prompt twice but for spaces': ('prompts: [a dog, "a  dog"]', 'twice'),
    'a prompt twice but for its case': ('prompts: [a dog, A Dog]', 'twice'),
    'half a character': ('prompts: ["a \\ud800 dog"]', 'surrogate'),
    'half a character elsewhere': ('variants: {"\\udfff": {of: db}}', 'surrogate'),
    'a number in quotes': ('overrides: {benchmarks: "2"}', 'benchmarks', 'not text'),
    'a variant of a list': ('methods: [db, x]\nvariants: {x: {of: [db]}}', 'variants.x.of', 'one method'),
    'a variant of a mapping': ('methods: [db, x]\nvariants: {x: {of: {a: db}}}', 'variants.x.of'),
    'a truth value that is none': ('budget: !!bool abc', '!!'),
    'a time that is none': ('budget: !!timestamp abc', '!!'),
    'a number that is none': ('budget: !!int abc', 'not valid YAML'),
    'a relative data module': ('world: {name: w, source: weights/mini, like: mini, data: .x}', "'.x'", 'cannot be imported'),
    'a token that is a known word': ('world: {name: w, source: weights/mini, like: mini, token: cat}', "'cat'", 'sks'),
    'a token of the template': ('world: {name: w, source: weights/mini, like: mini, token: drawing}', "'drawing'", 'sks'),
    'a prompt that is a number': ('prompts: [3]', 'quotes'),
    'a concept twice': ('methods: [db]\nconcepts: [cat-noto, cat-noto]', 'twice'),
    'a method twice': ('methods: [db, db]', 'twice'),
    'no method': ('methods: []', 'empty'),
    'a seed twice': ('seeds: [1, 1]', 'twice'),
    'no seed': ('seeds: []', 'seeds'),
    'a seed that is a word': ('seeds: abc', 'seeds'),
    'a list of words as seeds': ('seeds: [abc]', 'seeds'),
    'a seed without a list': ('seeds: 3', 'seeds'),
    'a negative seed': ('seeds: [-1]', '-1'),
    'a seed that is too large': ('seeds: [4294967296]', '4294967295'),
    'half a seed': ('seeds: [.5]', 'seeds'),
    'a truth value as seed': ('seeds: [yes]', 'truth'),
    'an octal number': ('seeds: [010]', 'YAML reads 010 as 8', 'line 3'),
    'a number of base 60': ('overrides: {steps: 1:30}', 'YAML reads 1:30 as 90'),
    'a hexadecimal number': ('seeds: [0x10]', '16'),
    'a report twice': ('reports: [summary, summary]', 'twice'),
    'a report that is no template': ('reports: [summary, corection]', 'correction'),
    'a step as report': ('reports: [summary, semantic]', 'report'),
    'a template that is no report of a study': ('reports: [summary, budget]', 'report'),
    'summary not first': ('reports: [measures, summary]', 'begin with summary'),
    'a step that is none': ('steps: [fronts]', 'front'),
    'a step twice': ('steps: [front, front]', 'twice'),
    'no step': ('steps: []', 'steps'),
    'a report on steps that are not taken': ('reports: [methods]', 'steps: [front]'),
    'a summary of steps that are left out': ('steps: [semantic]', 'leaves out appearance, fidelity'),
    'a summary of the small step': ('steps: [front]', 'methods'),
    'no report': ('reports: []', 'reports'),
    'the report on correction without correction': ('methods: [db]\nreports: [summary, correction]', 'with and without'),
    'overrides as a list': ('overrides: [steps]', 'overrides', 'dictionary'),
    'overrides left empty': ('overrides:', 'overrides', 'dictionary'),
    'method_overrides left empty': ('method_overrides:', 'method_overrides'),
    'a variant of nothing': ('methods: [v]\nvariants: {v: {correction: 3}}', '`of`', 'db-dc'),
    'a variant of a misspelt method': ('methods: [v]\nvariants: {v: {of: db-cd}}', 'db-dc'),
    'a variant of a variant': ('methods: [v, w]\nvariants: {v: {of: db}, w: {of: v}}', 'variant itself'),
    'a variant of itself': ('methods: [v]\nvariants: {v: {of: v}}', 'variant itself'),
    'variants of each other': ('methods: [v, w]\nvariants: {v: {of: w}, w: {of: v}}', 'variant itself'),
    'a variant with a built-in name': ('methods: [db]\nvariants: {db: {of: db-dc, prior: 0}}', 'built-in'),
    'a variant that no method is': ('variants: {v: {of: db}}', 'not among the methods'),
    'a variant with capital letters': ('methods: [V]\nvariants: {V: {of: db}}', 'lower-case'),
    'a variant that is a list': ('methods: [v]\nvariants: {v: [db]}', 'variants.v'),
    'a method called base': ('methods: [base]\nvariants: {base: {of: db}}', 'taken'),
    'a rank where there is none': ('methods: [v]\nvariants: {v: {of: db, adaptation: {rank: 8}}}', 'adaptation.rank', 'no effect'),
    'a correction source without correction': ('methods: [v]\nvariants: {v: {of: db, source: instance}}', 'source', 'no effect'),
    'a method named by a truth value': ('methods: [no]', 'quotes'),
    'a method named by a number': ('methods: [1e3, 5]', 'quotes'),
    'a world that is not there': ('world: mimi', 'mini'),
    'a world without a source': ('world: {name: mine}', 'source'),
    'a world like none': ('world: {name: mine, source: weights/mini, like: mimi}', 'mini'),
    'a misspelt field of a world': ('world: {name: mine, source: weights/mini, like: mini, guidence: 3}', 'guidance'),
    'an unknown recipe in a world': ('world: {name: mine, source: weights/mini, like: mini, recipes: {lora: {learning_rate: 1}}}', 'learning_rate'),
    'an unknown adaptation in a world': ('world: {name: mine, source: weights/mini, like: mini, recipes: {lroa: {}}}', 'lora'),
    'no sampling steps in a world': ('world: {name: mine, source: weights/mini, like: mini, sampling_steps: 0}', 'sampling_steps'),
    'a template without a place': ('world: {name: mine, source: weights/mini, like: mini, template: a drawing}', '{}'),
    'data that cannot be imported': ('world: {name: mine, source: weights/mini, like: mini, data: no.such}', 'no.such'),
    'data without the functions': ('world: {name: mine, source: weights/mini, like: mini, data: json}', 'splits'),
    'a checkpoint that is not there': ('checkpoints: {a: no/such}', 'does not exist'),
    'a checkpoint without a path': ('checkpoints: {a: ""}', 'no path'),
    'a checkpoint with the name of a method': ('checkpoints: {db: weights/mini}', 'name of a method'),
    'a checkpoint called base': ('checkpoints: {base: weights/mini}', 'taken'),
    'checkpoints as a list': ('checkpoints: [weights/mini]', 'checkpoints'),
    'a checkpoint twice': ('checkpoints: {a: weights/mini, b: weights/../weights/mini}', 'the same file'),
    'a budget that is not there': ('budget: qick', 'quick'),
    'a part of a study': ('budget: (part)', 'budget'),
    'a key twice': ('seeds: [0]\nbudget: smoke\nseeds: [1]', "'seeds' stands twice", 'line 5'),
    'a key twice below': ('overrides:\n  steps: 3\n  steps: 4', "'steps' stands twice", 'line 5'),
    'a key twice in a flow': ('overrides: {steps: 3, steps: 4}', "'steps' stands twice"),
    'a key twice, once in quotes': ('"name": y', "'name' stands twice"),
    'a key that is a number': ('variants: {1: {of: db}}', 'not text', 'quotes'),
    'a key that is a truth value': ('overrides: {yes: 1}', 'not text'),
    'a key that is a list': ('overrides: {[a]: 1}', 'not text'),
    'a tab': ('overrides:\n\tsteps: 3', 'spaces, not by tabs'),
    'two documents': ('---\nname: y', 'one document'),
    'an object': ('prompts: !!python/object/apply:os.system [echo]', 'YAML'),
    'an alias that holds itself': ('overrides: &a {steps: *a}', 'holds itself'),
    'text out of place': ('seeds: [0', 'YAML'),
}

@pytest.mark.parametrize('case', WRONG)
def test_refused(file, case):
    text, *says = WRONG[case]; own = 'concepts' in text
    refused(file, *says, text='name: x\n' + ('' if own else 'concepts: [cat-noto]\n') + text)

@pytest.mark.parametrize('text, says', [
    ('name: benchmarks', 'taken'), ('name: cache', 'taken'), ('name: foreign', 'taken'), ('name: scratch', 'taken'),
    ('name: My Study', 'lower-case'), ('name: ../x', 'lower-case'),
    ('name: 2024-01-01', 'quotes'), ('name: no', 'quotes'), ('name: 1e3', 'x'), ('name:', 'quotes'), (f'name: {"x"*200}', '80'), ('name: [x]', 'name')])
def test_names_of_studies(file, text, says):
    "A name becomes a folder; a number, a date or `no` is not a name (1e3 is text to YAML, and lower-case letters: it may stand)."
    file.write_text(text + '\nconcepts: [cat-noto]')
    if says == 'x': assert read_study(file).name == '1e3'
    else: refused(file, says)

@pytest.mark.parametrize('name', ['base', 'checkpoints', 'cache', 'tables', 'figures', 'parsl', 'db', 'lora-dc'])
def test_a_subject_may_not_have_the_name_of_a_folder_of_the_study(file, tmp_path, monkeypatch, name):
    from PIL import Image
    f = tmp_path/'data/subjects'/name; f.mkdir(parents=True); (f/'class.txt').write_text('mug'); Image.new('RGB', (64, 64)).save(f/'0.png')
    monkeypatch.setenv('OWF_DATA', str(tmp_path/'data')); refused(file, name, 'taken', text=f'name: x\nconcepts: [{name}]')

def test_what_is_right_is_read(file):
    file.write_text('name: "1"\nconcepts: [cat-noto]\nmethods: [lora, v]\nseeds: [0, 4294967295]\nbudget: smoke\nprompts: ["1e3", a dog]\n'
        'overrides: {colors: 0, splits: [heldout]}\nmethod_overrides: {adaptation: {rank: 8}, recipe: {lr: 1e-3}, images: 5}\n'
        'variants:\n  v: &v {of: lora-dc, recipe: {batch: 2}, source: "null"}\nreports: [summary, measures]\n')
    s = read_study(file); a, b = s.method('lora'), s.method('v')
    assert (a.adaptation.kind, a.adaptation.rank, a.recipe, a.images) == ('lora', 8, dict(lr=1e-3, steps=2), 5)        # not rank 8 of the default, db
    assert (b.correction, b.source, b.recipe) == (METHODS['lora-dc'].correction, 'null', dict(lr=1e-3, batch=2, steps=2))

# ---------------------------------------------------------------- the file itself
BOMB = b'a: &a [x,x,x,x,x,x,x,x,x]\n' + b''.join(b'%c: &%c [%s]\n' % (98+i, 98+i, b','.join([b'*%c' % (97+i)]*9)) for i in range(9))

@pytest.mark.parametrize('raw, says', [
    (HEAD.encode('utf-16'), 'UTF-16'), (HEAD.encode('utf-16-le'), 'UTF-8'), (HEAD.encode('utf-32'), 'UTF-16 or UTF-32'), (b'', 'empty'),
    (b'\n# only\n', 'empty'),
    (b'name: caf\xe9\n', 'UTF-8'),
    (b'\x89PNG\r\n\x1a\n\0\0', 'binary'), (b'- a\n', 'mapping'), (b'hello', 'mapping'), (b'null', 'empty'), (b'x'*30_000, 'bytes'),
    (b'name: \x07x', 'YAML'), (b'['*5000, 'nested'), (b'- '*5000, 'nested'), (BOMB, 'unfold'),
    (b'a: 2024-99-99', 'YAML'), (b'a: 1_e5: b: c', 'YAML')])
def test_files_that_are_no_study(file, raw, says):
    file.write_bytes(raw); refused(file, says, str(file))

def test_a_byte_order_mark_is_no_part_of_the_text(file):
    file.write_bytes(b'\xef\xbb\xbf' + HEAD.encode().replace(b'\n', b'\r\n')); assert read_study(file).name == 'x'

def test_a_folder_in_its_place(tmp_path): refused(tmp_path, 'is a folder')

@pytest.mark.parametrize('path', ['studies/reproduc.yaml', 'studies/reproduce', 'reproduce.yml', 'no/such\0', 'x'*5000])
def test_a_path_that_is_not_there_names_those_that_are(path): refused(path, 'does not exist', 'studies/reproduce.yaml')

def test_studies_are_found_from_every_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT/'nbs'); assert read_study('studies/smoke.yaml').name == 'smoke'
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('OWF_HOME', str(ROOT)); assert read_study('studies/smoke.yaml').name == 'smoke'

@pytest.mark.parametrize('f', sorted((ROOT/'studies').glob('*.yaml')), ids=lambda f: f.stem)
def test_the_studies_of_the_project_are_right(f, tmp_path, monkeypatch):
    if f.stem == 'checkpoints': return                                         # whose files are made by tools/foreign.py
    said = yaml.safe_load(f.read_text())
    if spec_of(said['world']).data != spec_of('mini').data:                    # what its users bring
        monkeypatch.setenv('OWF_DATA', str(tmp_path)); archives.make_all(tmp_path)
        for c in said['concepts']:
            (tmp_path/'subjects'/c).mkdir(parents=True); (tmp_path/'subjects'/c/'class.txt').write_text('toy')
            for i in range(3): Image.effect_noise((70, 80), 20 + 20*i).save(tmp_path/'subjects'/c/f'{i}.png')
    steps = plan(read_study(f), tmp_path/'out'); assert {s.name for s in steps} >= {*said.get('steps', ['base']), *said.get('reports', [])}

@pytest.mark.parametrize('n', ['0', '-1', 'two', '1.5', '', '100000'])
def test_a_number_of_workers_is_one_or_more(n, capsys):
    with pytest.raises(SystemExit) as e: main(['studies/smoke.yaml', f'--workers={n}'])
    assert e.value.code == 2 and 'from 1 to 1024' in capsys.readouterr().err

@pytest.mark.parametrize('seed', ['abc', '1.5', True, -1, 2**32, '', None])
def test_a_seed_by_hand_is_a_number(seed):
    with pytest.raises(ForgetError, match='whole number'): Run('studies/smoke.yaml', concept='cat-noto', method='db', seed=seed)

def test_runs_by_hand():
    assert Run('studies/smoke.yaml', concept='cat-noto', method='db', seed='3').seed == 3
    for bad in ('{"name": "x"', '{"name": "x", "sed": [1]}', 'studies/smok.yaml'):
        with pytest.raises(ForgetError): Run(bad)
    with pytest.raises(ForgetError, match='db-dc'): Run('studies/smoke.yaml', concept='cat-noto', method='db-cd')

def test_a_world_without_benchmarks_is_refused_before_it_loads(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('OWF_DATA', str(tmp_path/'data')); (tmp_path/'data/subjects/mug').mkdir(parents=True)
    text = 'name: x\nconcepts: [mug]\nworld: {name: own, source: no/such/folder}'
    refused(file, 'benchmarks', text=text); assert main([str(file)]) == 2 and 'benchmarks' in capsys.readouterr().err
    (tmp_path/'data/benchmarks').mkdir(); refused(file, 'benchmarks holds no folders')

# ---------------------------------------------------------------- what needs the world
def test_what_only_the_world_can_tell_is_told_before_the_first_step(file, tmp_path, monkeypatch):
    "Layers that a LoRA cannot find, a V* of several tokens, a benchmark with a bad picture, a subject whose prompt does not fit."
    from PIL import Image
    from openworld_forget.worlds.tiny import tiny_world
    for f in ('subjects/mug', 'benchmarks/kitchen/pot', 'benchmarks/kitchen/pan'):
        (d := tmp_path/'data'/f).mkdir(parents=True); [Image.effect_noise((70, 80), 20 + i).save(d/f'{i}.png') for i in range(3)]
    word = tmp_path/'data/subjects/mug/class.txt'; word.write_text('mug'); monkeypatch.setenv('OWF_DATA', str(tmp_path/'data'))
    w = tiny_world(); w = w.but(spec=w.spec.but(token='x'))
    def study(**kw): return Study.make(name='x', concepts=['mug'], budget='smoke', **kw)
    def stops(s, world, says):
        with pytest.raises(ForgetError, match=says): ready(s, world)
    stops(study(methods=['lora'], method_overrides=dict(adaptation=dict(targets=['to_qq']))), w, 'to_q')
    stops(study(methods=['cd']), w.but(spec=w.spec.but(token='zyx')), 'tokens')
    for token, name in (('mug', 'mug'), ('pan', 'pan'), ('horse', 'horse')):
        stops(study(), w.but(spec=w.spec.but(token=token)), f"'{token}'")
    word.write_text('mugs ' * 12); stops(study(), w, 'tokens'); word.write_text('mug')
    (bad := tmp_path/'data/benchmarks/kitchen/pan/1.png').write_bytes(bad.read_bytes()[:100]); stops(study(overrides=dict(per_class=3)), w, '1.png')

# ---------------------------------------------------------------- keys
def keys(text, tmp_path):
    (f := tmp_path/'s.yaml').write_text('name: k\n' + text); home = tmp_path/'k'
    return {f'{s.folder.relative_to(home).as_posix()}/{s.name}': s.key for s in plan(read_study(f), tmp_path)}

BEFORE = '''concepts: [cat-noto, dog-fluent]
methods: [db, db-dc, strong]
seeds: [0, 1]
prompts: [a red house]
overrides: {per_class: 2}
variants: {strong: {of: db-dc, correction: 20}}
'''
EDITS = {      # edit -> what it concerns, as substrings of the step's name
    'nothing': ('', '', []),
    'a seed': ('seeds: [0, 1]', 'seeds: [0, 1, 2]', ['./']),
    'a concept': ('dog-fluent', 'dog-fluent, tulip-fluent', ['./']),
    'the order of concepts': ('cat-noto, dog-fluent', 'dog-fluent, cat-noto', ['./']),
    'a method': ('db-dc, strong', 'db-dc, lora, strong', ['./']),
    'a method less': ('[db, db-dc', '[db-dc', ['./']),
    'a report': ('seeds', 'reports: [summary, correction]\nseeds', []),
    'a prompt': ('a red house', 'a red house, a cup', ['./', 'base', 'appearance']),
    "one variant's lambda": ('20', '30', ['./', '/strong/']),
    'a recipe of one variant': ('correction: 20', 'correction: 20, recipe: {lr: .01}', ['./', '/strong/']),
    'a field of all methods': ('seeds', 'method_overrides: {share: .5}\nseeds', ['./', 'customize', 'semantic', 'appearance', 'fidelity']),
    'images per class': ('per_class: 2', 'per_class: 3', ['./', 'base', 'semantic']),
    'suspects': ('per_class: 2', 'per_class: 2, suspects: 3', ['./', 'semantic']),
    'images of the subject': ('per_class: 2', 'per_class: 2, per_template: 2', ['./', 'fidelity']),
    'images per prompt': ('per_class: 2', 'per_class: 2, per_prompt: 4', ['./', 'base', 'appearance']),
    'length of the training': ('per_class: 2', 'per_class: 2, steps: 9', ['./', 'customize', 'semantic', 'appearance', 'fidelity']),
}

@pytest.mark.parametrize('edit', EDITS)
def test_an_edit_repeats_what_it_concerns(tmp_path, edit):
    old, new, concerns = EDITS[edit]; a, b = keys(BEFORE, tmp_path), keys(BEFORE.replace(old, new, 1) if old else BEFORE, tmp_path)
    changed = {k for k in set(a) & set(b) if a[k] != b[k]}; expected = {k for k in set(a) & set(b) if any(c in k for c in concerns)}
    assert changed == expected, sorted(changed ^ expected)

def test_one_more_seed_runs_its_own_steps_and_the_report(tmp_path, monkeypatch):
    "The study has been run; one seed more: its runs and the summary are left to do, and nothing else."
    (f := tmp_path/'s.yaml').write_text('name: k\nbudget: smoke\nconcepts: [cat-noto, dog-fluent]\n')
    for s in plan(read_study(f), tmp_path):
        s.folder.mkdir(parents=True, exist_ok=True); s.notebook.write_text('{}'); write_json(s.folder/f'{s.name}.json', dict(key=s.key, files=[]))
    assert all(s.done for s in plan(read_study(f), tmp_path))
    f.write_text(f.read_text() + 'seeds: [0, 7]\n'); steps = plan(read_study(f), tmp_path); todo = [s for s in steps if not s.done]
    assert (len(steps), len(todo)) == (34, 17) and all(s.folder.name == 'seed-7' for s in todo[:-1]) and todo[-1].name == 'summary'

def test_a_step_gets_what_its_key_holds_and_no_more(tmp_path):
    "Asking a step's study for a field that it does not read is an error, not a default."
    (f := tmp_path/'s.yaml').write_text('name: k\n' + BEFORE); s = read_study(f); seen = set()
    for p in plan(s, tmp_path):
        part = Study.make(**json.loads(p.params['study']))
        if p.name not in READS: assert part == s.but(reports=['summary']); continue
        seen.add(p.name); limits = part.limits
        assert set(vars(limits)) == set(READS[p.name]) and all(getattr(limits, k) == getattr(s.limits, k) for k in READS[p.name])
        for k in set(Budget.model_fields) - set(READS[p.name]):
            with pytest.raises(AttributeError): getattr(limits, k)
        if p.name != 'base': assert part.method(part.methods[0]) == s.method(p.params['method']) and len(part.seeds) == 1
    assert seen == set(READS) - {'shard', 'front', 'foresee', 'sequence'} and study_reports() == [
        'architectures', 'correction', 'forecast', 'measures', 'methods', 'paper', 'rewound', 'sequences', 'summary', 'validation', 'weightless']

def test_the_files_of_a_checkpoint_are_part_of_its_key_alone(tmp_path):
    import torch
    from safetensors.torch import save_file
    save_file({'unet.x.lora_A.weight': torch.ones(2, 2)}, tmp_path/'a.safetensors')
    (tmp_path/'b').mkdir(); save_file({'unet.x.lora_A.weight': torch.ones(2, 2)}, tmp_path/'b/pytorch_lora_weights.safetensors')
    text = f'checkpoints: {{a: {tmp_path}/a.safetensors, b: {tmp_path}/b}}\n'; one = keys(text, tmp_path)
    save_file({'unet.x.lora_A.weight': torch.zeros(2, 2)}, tmp_path/'a.safetensors'); two = keys(text, tmp_path)
    assert {k for k in one if one[k] != two[k]} == {'checkpoints/a/semantic', 'checkpoints/a/appearance', './summary'}
    save_file({'<my-word>': torch.zeros(2, 8)}, tmp_path/'a_emb.safetensors'); three = keys(text, tmp_path)                    # a word beside the file
    assert {k for k in two if three[k] != two[k]} == {'checkpoints/a/semantic', 'checkpoints/a/appearance', './summary'}

def test_pictures_are_part_of_the_keys_of_the_steps_that_see_them(tmp_path, monkeypatch):
    from PIL import Image
    from openworld_forget.worlds.tiny import save_world, tiny_world
    save_world(tiny_world(), tmp_path/'sd'); monkeypatch.setenv('OWF_DATA', str(tmp_path/'data'))
    def put(f, k): (tmp_path/'data'/f).mkdir(parents=True, exist_ok=True); Image.effect_noise((64, 64), k).save(tmp_path/'data'/f/'0.png')
    for f in ('subjects/mug', 'subjects/cup', 'benchmarks/a/x', 'benchmarks/a/y', 'benchmarks/b/x', 'benchmarks/b/y'): put(f, 20)
    text = f'concepts: [mug, cup]\nmethods: [db]\noverrides: {{benchmarks: 1}}\nworld: {{name: own, source: {tmp_path}/sd}}\n'; one = keys(text, tmp_path)
    put('subjects/cup', 90); two = keys(text, tmp_path); assert {k for k in one if one[k] != two[k]} == {k for k in one if 'cup' in k or './' in k}
    put('benchmarks/a/x', 90); three = keys(text, tmp_path)
    assert {k for k in one if three[k] != two[k]} == {k for k in one if 'base' in k or 'semantic' in k or './' in k}
    put('benchmarks/b/x', 90); assert keys(text, tmp_path) == three                                                            # not among the one
    (tmp_path/'sd/unet/config.json').write_text((tmp_path/'sd/unet/config.json').read_text() + ' '); four = keys(text, tmp_path)
    assert all(four[k] != three[k] for k in four)

def test_reports_read_the_tables_of_their_own_study_alone(tmp_path):
    "A method that was taken out of the study leaves its folder; its numbers stay out of the report."
    import pandas as pd
    s = Study.make(name='k', concepts=['cat-noto'], methods=['db'])
    for m in ('db', 'lora'): finish(tmp_path/f'cat-noto/{m}/seed-0', 'semantic', '', pd.DataFrame(dict(method=[m], seed=[0], value=[1.])))
    finish(tmp_path/'base', 'base', '', pd.DataFrame(dict(method=['base'], seed=[0], value=[1.])))
    assert set(collect(tmp_path, s).method) == {'base', 'db'} and set(collect(tmp_path).method) == {'base', 'db', 'lora'}

def test_budgets_are_right_and_dump_to_what_they_were():
    for b in BUDGETS.values(): assert Budget.make(**yaml.safe_load(yaml.safe_dump(b.model_dump()))) == b

def test_a_part_of_a_study_has_the_runs_of_the_whole_and_no_report(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    assert main(['studies/smoke.yaml', '--methods', 'db-dc', '--seeds', '0', '--dry-run']) == 0
    said = [x.split()[1].removeprefix(f'{tmp_path}/') for x in capsys.readouterr().out.splitlines() if x.startswith('run ')]
    assert said == ['smoke/base/base.ipynb', *(f'smoke/cat-noto/db-dc/seed-0/{n}.ipynb' for n in ('customize', 'semantic', 'appearance', 'fidelity'))]

@pytest.mark.parametrize('options, says', [
    (['--methods', 'db-cd'], "Unknown method of the study smoke 'db-cd'. Did you mean"), (['--seeds', '7'], "Unknown seed of the study smoke '7'. Known: 0"),
    (['--subjects', 'cat'], "Unknown subject of the study smoke 'cat'. Did you mean 'cat-noto'")])
def test_a_part_that_the_study_has_not_is_an_error(options, says, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('OWF_OUTPUTS', str(tmp_path))
    assert main(['studies/smoke.yaml', *options]) == 2 and says in capsys.readouterr().err and not list(tmp_path.iterdir())

@pytest.mark.parametrize('argv', [['--clear-cache', '--methods', 'db'], ['studies/smoke.yaml', '--methods', 'db,,db-dc'], ['studies/smoke.yaml', '--seeds=']])
def test_a_part_of_nothing_is_an_error(argv, capsys):
    with pytest.raises(SystemExit) as e: main(argv)
    assert e.value.code == 2 and ('a part of a study file' in (said := capsys.readouterr().err) or 'no list of names' in said)

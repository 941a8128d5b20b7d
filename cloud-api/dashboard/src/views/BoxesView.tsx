import { useId, useState } from 'react';
import type { ConsentText, StaffMember } from '../api/types';
import { useApp } from '../context';
import { Ago, ErrorBox, Icon } from './parts';
import { useLoaded, useTask } from './useTask';

/** What the boxes are told: who may use their pages, and what wearers are asked to agree to. */
export default function BoxesView() {
  const { session } = useApp();
  const admin = session.member.role === 'admin';
  return (
    <div className="detail">
      <a className="back" href="#/">
        <Icon name="back" />
        All wearers
      </a>
      <h1>Boxes</h1>
      <p className="muted intro">Each box has a page of its own, where staff pair devices and give them to wearers. It works without the cloud, by what is set here.</p>
      <div className="panels">
        {session.member.role !== 'viewer' && <OwnPin />}
        {admin && <Staff />}
        <ConsentTexts admin={admin} />
      </div>
    </div>
  );
}

function OwnPin() {
  const { clinic } = useApp();
  const id = useId();
  const { value, error: loadError, reload } = useLoaded(() => clinic.client.me());
  const { busy, error, run } = useTask();
  const [done, setDone] = useState(false);
  const submit = async (form: HTMLFormElement) => {
    const field = (name: string) => String(new FormData(form).get(name) ?? '').trim();
    setDone(false);
    const set = await run(async () => {
      await clinic.client.setPin(field('pin'), field('name'));
    });
    if (!set) return;
    form.reset();
    setDone(true);
    reload();
  };
  return (
    <section className="card panel" aria-labelledby={`${id}-title`} data-testid="own-pin">
      <h2 id={`${id}-title`}>Your PIN</h2>
      {loadError && <ErrorBox error={loadError} onRetry={reload} />}
      {value && (
        <p className="muted" data-testid="pin-state">
          {value.pinSetAt === null ? 'You have none: no box lets you in.' : <>Boxes know you as {value.boxName}; PIN set <Ago at={value.pinSetAt} />.</>}
        </p>
      )}
      <form className="fields" key={value?.boxName ?? ''} onSubmit={(e) => { e.preventDefault(); void submit(e.currentTarget); }}>
        <label htmlFor={`${id}-name`}>Name on the boxes</label>
        <input id={`${id}-name`} name="name" maxLength={100} defaultValue={value?.boxName ?? ''} autoComplete="off" data-testid="pin-name" />
        <label htmlFor={`${id}-pin`}>New PIN, six digits</label>
        <input
          id={`${id}-pin`}
          name="pin"
          type="password"
          inputMode="numeric"
          pattern="[0-9]{6}"
          maxLength={6}
          autoComplete="new-password"
          title="Six digits"
          required
          data-testid="pin-input"
        />
        {error && <ErrorBox error={error} />}
        {done && (
          <p className="notice" role="status">
            Set. The boxes know it in a moment; one without a connection, when it has one again.
          </p>
        )}
        <div className="fields-act">
          <button type="submit" className="button small primary" disabled={busy} data-testid="pin-submit">
            Set PIN
          </button>
        </div>
      </form>
    </section>
  );
}

function Staff() {
  const { clinic } = useApp();
  const id = useId();
  const { value, error, reload } = useLoaded(() => clinic.client.staff());
  return (
    <section className="card panel" aria-labelledby={`${id}-title`} data-testid="staff">
      <h2 id={`${id}-title`}>Who may use the boxes</h2>
      {error && <ErrorBox error={error} onRetry={reload} />}
      <ul className="lines">
        {value?.map((m) => (
          <StaffLine key={m.id} member={m} onChanged={reload} />
        ))}
      </ul>
      <p className="muted">Each sets their own PIN on this page. A viewer may do nothing at a box.</p>
    </section>
  );
}

function StaffLine({ member, onChanged }: { member: StaffMember; onChanged: () => void }) {
  const { clinic } = useApp();
  const { busy, error, run } = useTask();
  const remove = async () => {
    if (await run(() => clinic.client.removePin(member.id))) onChanged();
  };
  return (
    <li>
      <div className="line">
        <strong>{member.boxName ?? member.email}</strong>
        <span className="muted">
          {member.boxName && `${member.email} · `}
          {member.role}
        </span>
        <span className={member.pinSetAt === null ? 'muted' : ''}>
          {member.pinSetAt === null ? 'no PIN' : <>PIN set <Ago at={member.pinSetAt} /></>}
        </span>
        {member.pinSetAt !== null && (
          <button type="button" className="button small" disabled={busy} onClick={() => void remove()}>
            Take PIN back
          </button>
        )}
      </div>
      {error && <ErrorBox error={error} />}
    </li>
  );
}

const LANGUAGES: Record<string, string> = { en: 'English', hi: 'Hindi' };

function ConsentTexts({ admin }: { admin: boolean }) {
  const { clinic } = useApp();
  const id = useId();
  const { value, error, reload } = useLoaded(() => clinic.client.consentTexts());
  const current = value?.filter((t) => t.current) ?? [];
  const former = value?.filter((t) => !t.current) ?? [];
  return (
    <section className="card panel wide" aria-labelledby={`${id}-title`} data-testid="consent-texts">
      <h2 id={`${id}-title`}>What wearers agree to</h2>
      {error && <ErrorBox error={error} onRetry={reload} />}
      {value?.length === 0 && <p className="muted">No text yet. Without one, nobody can be given a device at a box.</p>}
      {current.map((t) => (
        <Text key={`${t.version}/${t.language}`} text={t} open />
      ))}
      {former.length > 0 && <h3>Former versions</h3>}
      {former.map((t) => (
        <Text key={`${t.version}/${t.language}`} text={t} />
      ))}
      {admin && <AddText onAdded={reload} />}
    </section>
  );
}

function Text({ text, open = false }: { text: ConsentText; open?: boolean }) {
  return (
    <details className="consent" open={open} data-testid="consent-text" data-version={text.version}>
      <summary>
        {LANGUAGES[text.language] ?? text.language}, version {text.version} <span className="muted">since <Ago at={text.createdAt} /></span>
      </summary>
      <p lang={text.language}>{text.text}</p>
    </details>
  );
}

function AddText({ onAdded }: { onAdded: () => void }) {
  const { clinic } = useApp();
  const id = useId();
  const { busy, error, run } = useTask();
  const submit = async (form: HTMLFormElement) => {
    const data = new FormData(form);
    const field = (name: string) => String(data.get(name) ?? '').trim();
    const added = await run(() => clinic.client.addConsentText({ version: field('version'), language: field('language'), text: field('text') }));
    if (!added) return;
    form.reset();
    onAdded();
  };
  return (
    <form className="fields" onSubmit={(e) => { e.preventDefault(); void submit(e.currentTarget); }}>
      <h3>A new text</h3>
      <p className="muted">It takes the place of the last one in its language, for who is asked from now on. It cannot be changed afterwards.</p>
      <label htmlFor={`${id}-language`}>Language</label>
      <select id={`${id}-language`} name="language" data-testid="text-language">
        {Object.entries(LANGUAGES).map(([code, name]) => (
          <option key={code} value={code}>
            {name}
          </option>
        ))}
      </select>
      <label htmlFor={`${id}-version`}>Version</label>
      <input id={`${id}-version`} name="version" maxLength={50} required autoComplete="off" data-testid="text-version" />
      <label htmlFor={`${id}-text`}>Text</label>
      <textarea id={`${id}-text`} name="text" rows={6} required data-testid="text-text" />
      {error && <ErrorBox error={error} />}
      <div className="fields-act">
        <button type="submit" className="button small primary" disabled={busy} data-testid="text-submit">
          Add
        </button>
      </div>
    </form>
  );
}

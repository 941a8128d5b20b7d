import { useId, useState } from 'react';
import type { User } from '../api/types';
import { useApp, useStore } from '../context';
import { ErrorBox } from './parts';
import { useTask } from './useTask';

/** Wearers whom a box added while nobody in the cloud knew them: somebody says who they are. */
export function AddedAtBoxes() {
  const { session } = useApp();
  const users = useStore('users', (s) => s.users);
  const waiting = users.filter((u) => u.provisional);
  if (waiting.length === 0 || session.member.role === 'viewer') return null;
  return (
    <section className="card added" aria-labelledby="added-title" data-testid="added-at-boxes">
      <h2 id="added-title">Added at a box</h2>
      <p className="muted">Their readings are stored already. Say who they are, so that nobody is in the clinic twice.</p>
      <ul>
        {waiting.map((u) => (
          <Added key={u.id} user={u} others={users.filter((o) => o.id !== u.id)} />
        ))}
      </ul>
    </section>
  );
}

function Added({ user, others }: { user: User; others: readonly User[] }) {
  const { clinic } = useApp();
  const id = useId();
  const box = useStore('gateways', (s) => s.gateways.find((g) => g.id === user.addedByGateway)?.name);
  const [how, setHow] = useState<'new' | 'known' | null>(null);
  const { busy, error, run } = useTask();
  const [into, setInto] = useState('');

  const confirm = (form: FormData) =>
    run(async () => {
      const field = (name: string) => String(form.get(name) ?? '').trim();
      await clinic.client.confirm(user.id, { displayName: field('name'), externalId: field('number') });
      await clinic.load();
    });
  const merge = () =>
    run(async () => {
      await clinic.client.merge(user.id, into);
      await clinic.load();
    });

  return (
    <li className="added-one" data-testid="provisional" data-user={user.id}>
      <div className="added-head">
        <strong>{user.displayName}</strong>
        {box && <span className="muted">at {box}</span>}
        {how === null && (
          <span className="added-act">
            <button type="button" className="button small" onClick={() => setHow('new')} data-testid="provisional-new">
              New wearer…
            </button>
            <button type="button" className="button small" onClick={() => setHow('known')} disabled={others.length === 0} data-testid="provisional-known">
              Known already…
            </button>
          </span>
        )}
      </div>
      {error && <ErrorBox error={error} />}
      {how === 'new' && (
        <form className="fields" onSubmit={(e) => { e.preventDefault(); void confirm(new FormData(e.currentTarget)); }}>
          <label htmlFor={`${id}-name`}>Name</label>
          <input id={`${id}-name`} name="name" defaultValue={user.displayName} maxLength={255} required />
          <label htmlFor={`${id}-number`}>The clinic’s number for them</label>
          <input id={`${id}-number`} name="number" maxLength={255} autoComplete="off" />
          <div className="fields-act">
            <button type="submit" className="button small primary" disabled={busy} data-testid="confirm-submit">
              Confirm
            </button>
            <button type="button" className="button small" onClick={() => setHow(null)}>
              Cancel
            </button>
          </div>
        </form>
      )}
      {how === 'known' && (
        <form className="fields" onSubmit={(e) => { e.preventDefault(); void merge(); }}>
          <label htmlFor={`${id}-into`}>They are</label>
          <select id={`${id}-into`} value={into} onChange={(e) => setInto(e.target.value)} required>
            <option value="">Choose a wearer</option>
            {others.map((o) => (
              <option key={o.id} value={o.id}>
                {o.displayName}
                {o.externalId && o.externalId !== o.displayName && ` (${o.externalId})`}
              </option>
            ))}
          </select>
          <p className="muted">All readings of {user.displayName} become theirs. This cannot be undone.</p>
          <div className="fields-act">
            <button type="submit" className="button small primary" disabled={busy || into === ''} data-testid="merge-submit">
              Merge
            </button>
            <button type="button" className="button small" onClick={() => setHow(null)}>
              Cancel
            </button>
          </div>
        </form>
      )}
    </li>
  );
}

import { useId, useState, type FormEvent } from 'react';
import type { Auth } from '../api/auth';
import { explain, Problem } from '../api/http';
import { ErrorBox, Logo } from './parts';

export function Login({ auth, notice }: { auth: Auth; notice?: string | undefined }) {
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const [shown, setShown] = useState(false);
  const id = useId();

  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const email = String(form.get('email') ?? '').trim();
    const password = String(form.get('password') ?? '');
    if (!email || !password) {
      setError('Enter your email address and your password.');
      return;
    }
    setBusy(true);
    setError(null);
    try {
      await auth.login(email, password);
    } catch (e) {
      setBusy(false);
      setError(e instanceof Problem && e.status === 401 && !e.detail ? 'The email address or the password is not right.' : explain(e));
    }
  };

  return (
    <main className="login">
      <form className="card login-card" onSubmit={(e) => void submit(e)} noValidate aria-labelledby={`${id}-title`}>
        <div className="login-head">
          <Logo />
          <h1 id={`${id}-title`}>Kinara</h1>
        </div>
        <p className="muted">Log in to see your clinic’s wearers.</p>
        {notice && !error && (
          <p className="notice" role="status">
            {notice}
          </p>
        )}
        {error && <ErrorBox error={error} />}
        <label htmlFor={`${id}-email`}>Email</label>
        <input id={`${id}-email`} data-testid="login-email" name="email" type="email" autoComplete="username" autoFocus required spellCheck={false} />
        <label htmlFor={`${id}-password`}>Password</label>
        <div className="password">
          <input
            id={`${id}-password`}
            data-testid="login-password"
            name="password"
            type={shown ? 'text' : 'password'}
            autoComplete="current-password"
            required
          />
          <button type="button" className="ghost" aria-pressed={shown} onClick={() => setShown((s) => !s)}>
            {shown ? 'Hide' : 'Show'}
            <span className="sr"> password</span>
          </button>
        </div>
        <button type="submit" className="button primary" data-testid="login-submit" disabled={busy}>
          {busy ? 'Logging in…' : 'Log in'}
        </button>
      </form>
    </main>
  );
}

import { useEffect, useMemo, useState } from 'react';
import type { Auth } from '../api/auth';
import { explain } from '../api/http';
import type { Session } from '../api/types';
import { Clinic } from '../clinic';
import { AppContext } from '../context';
import { Zone } from '../format';
import { ErrorBox, Logo } from './parts';
import { Login } from './Login';
import { Shell } from './Shell';

const CHANNEL = 'kinara-session';

type State = { at: 'resuming' } | { at: 'failed'; error: string } | { at: 'out'; notice?: string } | { at: 'in'; session: Session };

/** Decides between the login and the clinic. */
export function Root({ auth }: { auth: Auth }) {
  const [state, setState] = useState<State>({ at: 'resuming' });
  const [attempt, setAttempt] = useState(0);

  useEffect(() => {
    const channel = new BroadcastChannel(CHANNEL);
    channel.onmessage = () => auth.leave();
    const unsubscribe = auth.subscribe((session) => {
      setState((before) => {
        if (session) return { at: 'in', session };
        return before.at === 'in' ? { at: 'out', notice: 'You have been logged out.' } : { at: 'out' };
      });
    });
    return () => {
      channel.close();
      unsubscribe();
    };
  }, [auth]);

  useEffect(() => {
    let gone = false;
    auth.resume().then(
      (session) => {
        if (!gone && !session) setState({ at: 'out' });
      },
      (error: unknown) => {
        if (!gone) setState({ at: 'failed', error: explain(error) });
      },
    );
    return () => {
      gone = true;
    };
  }, [auth, attempt]);

  const logout = async () => {
    const channel = new BroadcastChannel(CHANNEL);
    channel.postMessage('logout');
    channel.close();
    location.hash = '';
    let notice = 'You have been logged out.';
    try {
      await auth.logout();
    } catch {
      notice = 'This page has forgotten you, but the server could not be reached to end the session. Log in and out again later on a shared computer.';
    }
    setState({ at: 'out', notice });
  };

  switch (state.at) {
    case 'resuming':
      return (
        <div className="splash" role="status">
          <Logo />
          <span className="sr">Loading Kinara</span>
        </div>
      );
    case 'failed':
      return (
        <main className="splash">
          <Logo />
          <ErrorBox
            error={state.error}
            onRetry={() => {
              setState({ at: 'resuming' });
              setAttempt((n) => n + 1);
            }}
          />
        </main>
      );
    case 'out':
      return <Login auth={auth} notice={state.notice} />;
    case 'in': {
      // Another tab may have logged in as somebody else: then everything of the former session goes, at once.
      const { member, tenant } = state.session;
      return <ClinicSession key={`${tenant.id}|${member.id}`} auth={auth} session={state.session} onLogout={() => void logout()} />;
    }
  }
}

function ClinicSession({ auth, session, onLogout }: { auth: Auth; session: Session; onLogout: () => void }) {
  const [clinic] = useState(() => new Clinic(auth));
  const zone = useMemo(() => new Zone(session.tenant.timeZone), [session.tenant.timeZone]);
  const app = useMemo(() => ({ auth, session, clinic, zone }), [auth, session, clinic, zone]);
  useEffect(() => {
    clinic.start();
    return () => clinic.stop();
  }, [clinic]);
  return (
    <AppContext value={app}>
      <Shell onLogout={onLogout} />
    </AppContext>
  );
}
